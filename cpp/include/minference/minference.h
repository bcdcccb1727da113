// libminference: sparse attention for the prefill of long prompts. Includes every public header
// of C++; c_api.h is for C.
#pragma once

#include "minference/block_sparse_attention.h"
#include "minference/build_info.h"
#include "minference/dense_attention.h"
#include "minference/sparse_attention.h"
#include "minference/streaming_attention.h"
#include "minference/types.h"
#include "minference/vs_attention.h"
#include "minference/vs_index.h"
