// Memory for tests: every buffer is a heap block of exactly the bytes the library may touch, so
// that AddressSanitizer sees the first byte too many, filled with 0xFF (NaN in every type, -1 in an
// index) so that what is read without being written, or written without being asked for, shows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "minference/minference.h"

namespace minference::test {

/// `skip` bytes that are the test's, then `size` bytes for the library.
class HeapBytes {
 public:
  explicit HeapBytes(std::size_t size = 0, std::size_t skip = 0)
      : memory_(static_cast<unsigned char*>(std::malloc(size + skip ? size + skip : 1)),
                &std::free),
        size_(size),
        skip_(skip) {
    std::memset(memory_.get(), 0xFF, size + skip);
  }
  unsigned char* data() const { return memory_.get() + skip_; }
  std::size_t size() const { return size_; }
  std::size_t skip() const { return skip_; }
  bool is_poisoned() const {
    return std::all_of(data(), data() + size_, [](unsigned char byte) { return byte == 0xFF; });
  }

 private:
  std::unique_ptr<unsigned char, decltype(&std::free)> memory_;
  std::size_t size_, skip_;
};

/// How [batch, heads, rows, head_dim] lies in memory.
enum class Layout {
  kPlain,      ///< contiguous
  kRowsFirst,  ///< [batch, rows, heads, head_dim], as models hold it
  kSliced,     ///< rows of a wider tensor, and 1 element off any alignment
  kReversed,   ///< rows run backwards: a negative stride
  kOddStride,  ///< rows of odd strides: every second one off the alignment of a pair
  kWide,       ///< rows of a wider tensor, at multiples of 16 elements
  kExpanded,   ///< all heads are one head: stride 0 (inputs only)
};

inline std::size_t element_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8E4M3 ? 1 : 2;
}

class HeapTensor {
 public:
  HeapTensor() = default;
  HeapTensor(std::vector<std::int64_t> shape, DType dtype, Layout layout) {
    std::copy(shape.begin(), shape.end(), view.shape);
    view.dtype = dtype;
    const std::int64_t heads = shape[1], rows = shape[2], dim = shape[3];
    std::int64_t stride[4] = {heads * rows * dim, rows * dim, dim, 1};
    std::size_t skip = 0;
    switch (layout) {
      case Layout::kPlain:
      case Layout::kReversed:
        break;
      case Layout::kRowsFirst:
        stride[1] = dim;
        stride[2] = heads * dim;
        break;
      case Layout::kSliced:
        stride[2] = dim + 8;
        stride[1] = rows * stride[2];
        stride[0] = heads * stride[1];
        skip = 1;
        break;
      case Layout::kOddStride:
        stride[2] = dim + 1;
        stride[1] = rows * stride[2] + 1;
        stride[0] = heads * stride[1] + 1;
        break;
      case Layout::kWide:
        stride[2] = dim + 16;
        stride[1] = rows * stride[2];
        stride[0] = heads * stride[1];
        break;
      case Layout::kExpanded:
        stride[1] = 0;
        stride[0] = rows * dim;
        break;
    }
    std::int64_t last = 0;
    bool is_empty = false;
    for (int axis = 0; axis < 4; ++axis) {
      is_empty = is_empty || shape[axis] == 0;
      last += (shape[axis] - 1) * stride[axis];
      // An axis of length 1 may have any stride: this one would leave the buffer if it were used.
      view.stride[axis] = shape[axis] == 1 && axis != 3 ? (std::int64_t{1} << 40) : stride[axis];
    }
    bytes =
        HeapBytes(is_empty ? 0 : (last + 1) * element_bytes(dtype), skip * element_bytes(dtype));
    view.data = bytes.data();
    if (layout == Layout::kReversed && rows > 1) {
      view.data = bytes.data() + (rows - 1) * dim * element_bytes(dtype);
      view.stride[2] = -dim;
    }
  }

  void* at(std::int64_t b, std::int64_t h, std::int64_t r, std::int64_t d) const {
    // Not b * stride[0]: a length-1 axis has a stride that leaves the address space in bytes.
    std::int64_t offset = d;
    if (b != 0) offset += b * view.stride[0];
    if (h != 0) offset += h * view.stride[1];
    if (r != 0) offset += r * view.stride[2];
    return static_cast<unsigned char*>(view.data) +
           offset * static_cast<std::int64_t>(element_bytes(view.dtype));
  }

  TensorView view;
  HeapBytes bytes;
};

/// Bits of |value|, rounded to nearest even, in a format whose smallest normal number is
/// 2^lowest_exponent.
inline unsigned magnitude_bits(double value, int lowest_exponent, int mantissa_bits) {
  const double magnitude = std::abs(value);
  const int exponent =
      magnitude < std::ldexp(1.0, lowest_exponent) ? lowest_exponent : std::ilogb(magnitude);
  // In units of the last place: a normal number's first one adds 1 to the exponent.
  const double units = std::nearbyint(std::ldexp(magnitude, mantissa_bits - exponent));
  return ((exponent - lowest_exponent) << mantissa_bits) + static_cast<unsigned>(units);
}

/// Rounds to nearest even. float8 saturates, and NaN stays NaN; of float16 |value| < 65504.
inline void store_element(void* element, DType dtype, double value) {
  if (dtype == DType::kFloat32) {
    const float single = static_cast<float>(value);
    std::memcpy(element, &single, sizeof single);
    return;
  }
  if (dtype == DType::kFloat8E4M3) {
    unsigned bits =
        std::isnan(value) ? 0x7F : magnitude_bits(std::min(std::abs(value), 448.0), -6, 3);
    if (value < 0) bits |= 0x80;
    *static_cast<std::uint8_t*>(element) = static_cast<std::uint8_t>(bits);
    return;
  }
  std::uint16_t bits = 0;
  if (dtype == DType::kBFloat16) {
    const float single = static_cast<float>(value);
    std::uint32_t wide;
    std::memcpy(&wide, &single, sizeof wide);
    bits = static_cast<std::uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
  } else {
    bits = static_cast<std::uint16_t>(magnitude_bits(value, -14, 10));
    if (value < 0) bits |= 0x8000;
  }
  std::memcpy(element, &bits, sizeof bits);
}

/// Roughly normal with deviation 1; the same numbers on every machine.
inline double normal(std::mt19937& generator) {
  double sum = 0;
  for (int n = 0; n < 3; ++n) sum += generator() / 4294967296.0 - 0.5;
  return sum * 2;
}

/// Random values in rows [begin, end) of one batch row; the other rows stay NaN.
inline void fill_rows(HeapTensor& tensor, std::int64_t b, std::int64_t begin, std::int64_t end,
                      double scale, std::mt19937& generator) {
  for (std::int64_t h = 0; h < tensor.view.shape[1]; ++h) {
    for (std::int64_t r = begin; r < end; ++r) {
      for (std::int64_t d = 0; d < tensor.view.shape[3]; ++d) {
        store_element(tensor.at(b, h, r, d), tensor.view.dtype, scale * normal(generator));
      }
    }
  }
}

/// An IndexView over exactly its entries, contiguous.
class HeapIndex {
 public:
  HeapIndex() = default;
  explicit HeapIndex(std::vector<std::int64_t> shape) {
    std::size_t count = 1;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      view.shape[axis] = shape[axis];
      view.stride[axis] = static_cast<std::int64_t>(count);
      count *= shape[axis];
    }
    bytes = HeapBytes(count * sizeof(std::int32_t));
    view.data = data();
  }
  std::int32_t* data() const { return reinterpret_cast<std::int32_t*>(bytes.data()); }
  std::size_t count() const { return bytes.size() / sizeof(std::int32_t); }

  IndexView view;
  HeapBytes bytes;
};

}  // namespace minference::test
