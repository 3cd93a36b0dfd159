//! Reads weights of base models (safetensors folders, GGUF, hub) and writes merged ones.
