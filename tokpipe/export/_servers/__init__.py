"""What vLLM and SGLang share: which kinds of model take what, items of a request, refusals."""
