"""Models by name: from a name on the Hugging Face Hub to a folder of this machine.

In: `org/name`, `org/name@revision`, `embedded` or a folder. Out: the model as all processes of a
run call it, `org/name@commit` or an absolute path (`folders.resolve_model`), and the folder in
which a machine has it, fetched where it is not there (`folders.model_folder`). What is in the Hub's
cache is read in `cache`, what a folder must hold stands in `files`, and what a person is told in
`explanations`. Nothing here loads a model.
"""
