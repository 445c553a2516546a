"""What an object store answers, in words with a fix."""

from __future__ import annotations

import re

from stepwiser.errors import UserError

KEPT = "then start the same command again: finished work is kept"

# The first that fits; codes as S3, GCS and Azure and their likenesses send them.
_MEANINGS: tuple[tuple[str, str, bool], ...] = (
    (
        r"ExpiredToken|TokenRefreshRequired|ExpiredAuthenticationToken|token.{0,20}expired",
        "the credentials have expired: renew them (AWS_SESSION_TOKEN and the two keys, or the role "
        f"of the machine), {KEPT}",
        False,
    ),
    (
        r"RequestTimeTooSkewed",
        f"this machine's clock is wrong by more than 15 minutes: set it, {KEPT}",
        False,
    ),
    (
        r"NoSuchBucket|ContainerNotFound|bucket does not exist",
        "the bucket does not exist: create it, or correct the address",
        False,
    ),
    (
        r"QuotaExceeded|StorageFull|InsufficientStorage|InsufficientCapacity|\b507\b",
        f"the bucket is full or its quota is used up: free space or raise the quota, {KEPT}",
        False,
    ),
    (
        r"PermanentRedirect|redirect without LOCATION|AuthorizationHeaderMalformed|"
        r"IllegalLocationConstraint|\b301\b",
        "the bucket lies in another region: set AWS_REGION to it",
        False,
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|Unauthenticated|\b401\b",
        "the credentials are not accepted: correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
        "AWS_SESSION_TOKEN (GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY)",
        False,
    ),
    (
        r"AccessDenied|AuthorizationFailure|PermissionDenied|\b403\b",
        "the credentials may not do that: allow reading, writing, deleting and listing below the "
        "address (s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and, of the "
        f"bucket, s3:ListBucket), {KEPT}",
        False,
    ),
    (
        r"169\.254\.169\.254|metadata\.google\.internal|[Nn]o credentials",
        "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the "
        "machine a role (GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY)",
        False,
    ),
    (
        r"SlowDown|TooManyRequests|ServerBusy|RequestLimitExceeded|\b429\b|\b503\b",
        f"the store is overloaded and still was after many tries: wait, {KEPT}",
        True,
    ),
)


def is_lasting(error: Exception) -> bool:
    """Whether trying again is of no use."""
    found = _meaning(error)
    return found is not None and not found[1]


def named(error: Exception, action: str, place: str) -> UserError:
    """The error for the user: what could not be done, where, why, and the fix."""
    found = _meaning(error)
    words = f"{place} cannot be {action}: "
    if found is not None:
        return UserError(words + found[0])
    said = str(error).split("\n")[0][:300]
    return UserError(
        f"{words}{said}; look at the address, the network and AWS_ENDPOINT_URL, {KEPT}"
    )


def _meaning(error: Exception) -> tuple[str, bool] | None:
    # An object's name may hold any digits, and so may the time that it took (`in 301.5ms`): what
    # was asked for says nothing of the answer.
    said = re.sub(
        r"(Object at location|for path) \S+|https?://(?!169\.254)\S+|\b[\d.]+([nµm]?s)\b",
        "",
        str(error),
    )
    said = f"{type(error).__name__} {said.partition('Debug source')[0]}"
    for pattern, words, passes in _MEANINGS:
        if re.search(pattern, said):
            return words, passes
    return None
