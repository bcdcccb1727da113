#include "cpu/select.h"

#include <cstring>

namespace minference::cpu {
namespace {

/// Orders as the floats do; NaN is below everything.
inline std::uint32_t order_key(float score) {
  if (score != score) return 0;
  std::uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

constexpr int kDigitBits = 11;
constexpr int kNumDigits = 1 << kDigitBits;

}  // namespace

void select_top_k(const float* scores, std::int64_t n, std::int64_t k, std::int64_t num_forced,
                  std::int32_t* selected) {
  const std::int64_t forced = num_forced < k ? num_forced : k;
  for (std::int64_t i = 0; i < forced; ++i) selected[i] = static_cast<std::int32_t>(i);
  std::int64_t wanted = k - forced;
  if (wanted == 0) return;

  // Find the key of rank `wanted` digit by digit, from the highest.
  std::uint32_t prefix = 0;
  std::uint32_t prefix_mask = 0;
  constexpr int kShifts[] = {21, 10, 0};
  for (const int shift : kShifts) {
    const int bits = shift == 0 ? 32 - 2 * kDigitBits : kDigitBits;
    const std::uint32_t digit_mask = (1u << bits) - 1;
    std::int64_t histogram[kNumDigits] = {};
    for (std::int64_t i = forced; i < n; ++i) {
      const std::uint32_t key = order_key(scores[i]);
      if ((key & prefix_mask) == prefix) ++histogram[key >> shift & digit_mask];
    }
    std::int64_t digit = digit_mask;
    for (; histogram[digit] < wanted; --digit) wanted -= histogram[digit];
    prefix |= static_cast<std::uint32_t>(digit) << shift;
    prefix_mask |= digit_mask << shift;
  }
  // `prefix` is that key; of those equal to it the first `wanted` belong to the selection.
  std::int64_t count = forced;
  for (std::int64_t i = forced; i < n && count < k; ++i) {
    const std::uint32_t key = order_key(scores[i]);
    if (key > prefix || (key == prefix && wanted-- > 0)) {
      selected[count++] = static_cast<std::int32_t>(i);
    }
  }
}

}  // namespace minference::cpu
