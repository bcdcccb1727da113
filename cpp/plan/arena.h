// Cuts a block of memory into aligned pieces.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minference::plan {

/// Hands out pieces of a block of memory; with a null base it only adds up their sizes.
class Arena {
 public:
  /// `alignment`: of every piece. The base may have any, so the block needs that much more.
  Arena(void* base, std::size_t alignment)
      : base_(static_cast<char*>(base)), alignment_(alignment) {
    if (base == nullptr) return;
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(base);
    base_ += (alignment - address % alignment) % alignment;
  }

  template <class T>
  T* take(std::int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }

  void* take_bytes(std::size_t bytes) {
    void* const piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + alignment_ - 1) / alignment_ * alignment_;
    return piece;
  }

  /// Bytes of a block that has room for the pieces taken, wherever it begins.
  std::size_t block_bytes() const { return used_ + alignment_; }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t alignment_;
  std::size_t used_ = 0;
};

}  // namespace minference::plan
