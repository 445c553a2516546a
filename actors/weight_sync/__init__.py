"""Weights on their way from the learner to the engines.

In: a learner's parameters, rank by rank (`sender.WeightSource`). Out: the same bytes in every
engine worker, by the object store, by memory of a shared GPU, or by a broadcast. `transfer` says
what an engine is told beforehand, `rendezvous` how both sides find each other and give up
together, `buckets` how tensors become bytes, `shared_memory` how two processes see the same ones.
Loading them into a model is the engine's business.
"""
