# Read by the build of llama-cpp-python, which otherwise compiles llama.cpp's common library for itself and does not use it.
set(LLAMA_BUILD_COMMON OFF)
