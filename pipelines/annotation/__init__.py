"""Annotation around the labelers: which units there are, who gets them, how it goes.

In: a session. Out: finished units, by the stage `annotate` (`work`, `dispatch`, `monitor`) or
beside a training that reads them (`live`). How one problem is annotated is `stepwiser/annotation`.
"""
