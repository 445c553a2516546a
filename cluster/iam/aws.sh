#!/bin/bash
# The roles of cluster/aws, with the least that they need (cluster/iam/aws). Once, by a person with
# the rights of an administrator: BUCKET=my-runs cluster/iam/aws.sh
#
# The head sees instances, launches p4d and p4de for clusters called stepwiser-*, ends those, and may
# hand the workers' role to them, no other. Head and workers have one bucket. launcher.json is for
# people: attach it to whoever runs `ray up` and `ray down`.
set -euo pipefail
: "${BUCKET:?the bucket of runs and models}"
files=$(dirname "$0")/aws

runs=$(sed "s/stepwiser-runs/$BUCKET/" "$files/runs.json")
for name in head worker; do
    role=stepwiser-$name
    aws iam create-role --role-name "$role" --assume-role-policy-document "file://$files/trust.json"
    aws iam put-role-policy --role-name "$role" --policy-name runs --policy-document "$runs"
    aws iam create-instance-profile --instance-profile-name "$role"
    aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
done
aws iam put-role-policy --role-name stepwiser-head --policy-name head \
    --policy-document "file://$files/head.json"
aws iam create-policy --policy-name stepwiser-launcher \
    --policy-document "file://$files/launcher.json"

# Spot instances want this role of the account; it is there once anybody has asked for one in the
# console. Without it a head cannot launch annotators: "not authorized ... iam:CreateServiceLinkedRole".
aws iam get-role --role-name AWSServiceRoleForEC2Spot > /dev/null 2>&1 ||
    aws iam create-service-linked-role --aws-service-name spot.amazonaws.com
