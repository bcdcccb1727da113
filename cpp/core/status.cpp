#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace minference {
namespace {

thread_local char g_last_error[512] = "";

}  // namespace

namespace core {

Status fail(Status status, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(g_last_error, sizeof(g_last_error), format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace core

const char* last_error() { return g_last_error; }

const char* status_string(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kInvalidArgument:
      return "invalid argument";
    case Status::kUnsupported:
      return "unsupported";
    case Status::kWorkspaceTooSmall:
      return "workspace too small";
    case Status::kDeviceError:
      return "device error";
    case Status::kInternal:
      return "internal error";
  }
  return "unknown status";
}

}  // namespace minference
