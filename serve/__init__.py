"""The judge over HTTP: a Ray Serve application whose replicas hold the engines.

In: requests as `schema` describes them. Out: verdicts, scores, analyses (`service`), errors that
name the field; `app` has the routes, `page.html` the form at `/`. Training never goes through
here.
"""
