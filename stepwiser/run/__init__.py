"""The run directory: everything that is written down, and what can be read from it alone.

In: rows and figures of the stages. Out: tables (`store`, `tables`), units of annotation that are
done once (`units`), `metrics.jsonl` (`metrics_file`), model folders and cards (`model_exports`,
`model_card`), how far a run is (`status`), joined runs (`merge`), files for other libraries
(`export`), what steps have read (`read_log`), what a run needs of a cluster (`resource_plan`).
A run may lie in a folder or at an address: `store` hides which. No process is started here.
"""
