# Options of llama.cpp's build: its server alone, for this kind of processor, compiled fast.
set(CMAKE_BUILD_TYPE Release CACHE STRING "")
set(BUILD_SHARED_LIBS OFF CACHE BOOL "")

# A build for exactly this processor can contain instructions that a virtual machine forbids.
set(GGML_NATIVE OFF CACHE BOOL "")

# Only the arithmetic is worth the compiler's time (see arithmetic.cmake).
set(CMAKE_C_FLAGS_RELEASE "-O1 -DNDEBUG" CACHE STRING "")
set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG" CACHE STRING "")
set(CMAKE_PROJECT_ggml_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/arithmetic.cmake" CACHE FILEPATH "")
set(LLAMA_ALL_WARNINGS OFF CACHE BOOL "")

set(LLAMA_BUILD_SERVER ON CACHE BOOL "")
set(LLAMA_BUILD_TESTS OFF CACHE BOOL "")
set(LLAMA_BUILD_EXAMPLES OFF CACHE BOOL "")
set(LLAMA_BUILD_APP OFF CACHE BOOL "")
# Its page would be downloaded.
set(LLAMA_BUILD_UI OFF CACHE BOOL "")
set(LLAMA_USE_PREBUILT_UI OFF CACHE BOOL "")
set(LLAMA_OPENSSL OFF CACHE BOOL "")

# What it calls itself in `system_fingerprint`; it would name the commit of the repository around it.
set(LLAMA_BUILD_NUMBER 0 CACHE STRING "")
set(LLAMA_BUILD_COMMIT "llama-cpp-python-0.3.36" CACHE STRING "")
