"""One vLLM engine: requests of any thread in, samples with log-probs and version out.

`engine` is the thread that owns it, `vllm_core` every public call into vLLM, `vllm_internals`
whatever had to reach deeper, `worker_extension` what runs inside vLLM's workers, `text_decoder` the
text of sampled ids, `gpu_memory` the end of an engine that ran out of it. Nothing here knows of Ray
or of other engines.
"""
