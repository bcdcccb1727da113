// How core reports: a Status and, per thread, the sentence that explains it.
#pragma once

#include "minference/types.h"

namespace minference::core {

/// Stores the sentence for last_error() and returns `status`.
[[gnu::format(printf, 2, 3)]] Status fail(Status status, const char* format, ...);

}  // namespace minference::core
