"""Who may ask, how often, how much at a time and how long, and what is refused before it is read.

In: a header, a key's name, an ASGI request. Out: a key or 401 (`keys`, `gate`), a place in the
queue or 429 with the seconds to wait (`rate`, `queue`), 413 for a body that is too large (`gate`),
504 at a deadline and 503 at the end of the server (`owed`).
Nothing here knows Ray, the judge or a route's schema.
"""
