# Finds what the CUDA kernels are built with, as MINFERENCE_CUDA says. Sets:
#
#   cuda_lacks                what is missing, in words; empty: CUDA is built, and the rest is set
#   CMAKE_CUDA_...            the language, enabled: architectures, C++20, no runtime by default
#   cutlass                   CUTLASS's folder: headers in include/
#
# Included by CMakeLists.txt at top level, the only place where a language can be enabled.

set(cuda_lacks "")
if(MINFERENCE_CUDA STREQUAL "AUTO" AND MINFERENCE_SANITIZE)
  set(cuda_lacks "MINFERENCE_SANITIZE sees what runs on the CPU")
elseif(NOT MINFERENCE_CUDA)
  set(cuda_lacks "MINFERENCE_CUDA is ${MINFERENCE_CUDA}")
endif()

# ---- nvcc ---------------------------------------------------------------------------------------

if(NOT cuda_lacks AND NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # an earlier NOTFOUND
  find_program(
    nvcc nvcc NO_CACHE HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(nvcc AND "$ENV{CUDACXX}" STREQUAL "")  # left to itself, CMake would search PATH only
    set(ENV{CUDACXX} "${nvcc}")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_lacks "there is no working nvcc in CUDACXX, CUDA_HOME, on PATH or in /usr/local/cuda")
  endif()
endif()

# ---- CUTLASS ------------------------------------------------------------------------------------

if(NOT cuda_lacks)
  if(NOT CUTLASS_DIR)  # kept, as CMake calls itself again in another environment
    set(CUTLASS_DIR "$ENV{CUTLASS_DIR}" CACHE PATH "" FORCE)
  endif()
  set(cutlass "${CUTLASS_DIR}")
  if(NOT cutlass)
    set(cutlass "${PROJECT_SOURCE_DIR}/third_party/cutlass")
    if(NOT EXISTS "${cutlass}/include")
      find_package(Python 3.10 QUIET COMPONENTS Interpreter)
      if(Python_FOUND)
        find_python_package(cutlass_library nvidia-cutlass)
      endif()
      if(cutlass_library_folder)
        set(cutlass "${cutlass_library_folder}/source")
      endif()
    endif()
  endif()
  set(cutlass_version "")
  if(EXISTS "${cutlass}/include/cutlass/version.h")
    file(STRINGS "${cutlass}/include/cutlass/version.h" lines
         REGEX "define CUTLASS_(MAJOR|MINOR|PATCH) ")
    string(REGEX MATCHALL "[0-9]+" cutlass_version "${lines}")
    list(JOIN cutlass_version . cutlass_version)
  endif()
  if(cutlass_version VERSION_LESS 4.2)
    string(CONCAT cuda_lacks "CUTLASS 4.2 or later is not in '${cutlass}': set CUTLASS_DIR, or "
                             "pip install --no-deps nvidia-cutlass==4.2.0.0")
    if(MINFERENCE_CUDA STREQUAL "AUTO")
      message(WARNING "nvcc is here and yet there will be no CUDA kernels: ${cuda_lacks}")
    endif()
  endif()
endif()

# ---- Architectures ------------------------------------------------------------------------------

# As CMake is told, or builds of PyTorch extensions are, or these: "80" is code for sm_80 and PTX that
# serves later cards.
if(NOT cuda_lacks AND NOT CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
  set(CMAKE_CUDA_ARCHITECTURES "")
  string(REGEX MATCHALL "[^ ,;]+" names "$ENV{TORCH_CUDA_ARCH_LIST}")
  foreach(name IN LISTS names)
    if(name MATCHES "^([0-9]+)[.]([0-9][af]?)([+]PTX)?$" AND CMAKE_MATCH_1 GREATER_EQUAL 8)
      string(REGEX REPLACE "[+]PTX$" "" plain "${name}")
      string(REPLACE "." "" number "${plain}")
      if(plain STREQUAL name)
        string(APPEND number -real)
      endif()
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${number})
    else()
      message(WARNING "${name} of TORCH_CUDA_ARCH_LIST is left out: CUDA kernels are compiled for "
                      "numbers from 8.0 on, as in 8.0 9.0a+PTX")
    endif()
  endforeach()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90a)
  endif()
endif()

# ---- The decision -------------------------------------------------------------------------------

if(cuda_lacks AND MINFERENCE_CUDA AND NOT MINFERENCE_CUDA STREQUAL "AUTO")
  message(FATAL_ERROR "MINFERENCE_CUDA is ${MINFERENCE_CUDA}, but ${cuda_lacks}")
elseif(cuda_lacks)
  message(STATUS "CUDA kernels are left out: ${cuda_lacks}")
else()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  if(CMAKE_VERSION VERSION_LESS 3.26)  # does not know that nvcc has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # targets name theirs
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, "
                 "CUTLASS ${cutlass_version} of ${cutlass}")
endif()
