// Vertical-slash lines of known density or distance, for attention with given lines:
// bench/gpu/patterns.py makes the same ones for Python. kernel_bench.cu calls it.
//
// The share of a pattern is that of the causal pairs its cover attends; columns take an eighth of
// it. At short lengths a share of 2% is less than the first cover of 64: the share that comes out
// is measured by plan_stats and printed, the one in the name is what was aimed at.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace minference::bench {

struct Lines {
  std::vector<std::int32_t> verticals;  ///< ascending
  std::vector<std::int32_t> slashes;    ///< ascending
};

/// How slashes lie: `local` offsets from 0 on, then `bands` bands of `width` anywhere.
struct LineShape {
  std::int64_t num_vertical, local, bands, width;
};

inline Lines draw_lines(const LineShape& shape, std::int64_t length, std::uint32_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::int64_t limit) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(limit));
  };
  std::vector<bool> is_column(length), is_line(length);
  std::int64_t columns = 0;
  for (; columns < std::min<std::int64_t>(4, length); ++columns) is_column[columns] = true;
  while (columns < std::min(shape.num_vertical, length)) {
    const std::int64_t column = below(length);
    columns += is_column[column] ? 0 : 1;
    is_column[column] = true;
  }
  std::fill_n(is_line.begin(), std::min(shape.local, length), true);
  for (std::int64_t band = 0; band < shape.bands; ++band) {
    const std::int64_t begin = below(length);
    const std::int64_t end = std::min(begin + shape.width, length);
    std::fill(is_line.begin() + begin, is_line.begin() + end, true);
  }
  Lines lines;
  for (std::int64_t i = 0; i < length; ++i) {
    if (is_column[i]) lines.verticals.push_back(static_cast<std::int32_t>(i));
    if (is_line[i]) lines.slashes.push_back(static_cast<std::int32_t>(i));
  }
  return lines;
}

/// Slashes so far apart that no cache serves one of them with keys that another one has read,
/// whether of this head or of one with the same keys: at 1M tokens and 4 heads per kv head 40 each,
/// 6512 offsets apart, while all multiprocessors together work on 4224 rows of a head at a time.
/// Besides, offset 0 and 4 columns.
inline Lines isolated_lines(std::int64_t length, int head, int heads_per_kv) {
  const std::int64_t count = std::clamp<std::int64_t>(length / (128 * heads_per_kv), 1, 40);
  const std::int64_t step = length / (count * heads_per_kv + 1);
  std::mt19937_64 random(static_cast<std::uint64_t>(head));
  Lines lines{.verticals = {}, .slashes = {0}};
  for (std::int64_t column = 0; column < std::min<std::int64_t>(4, length); ++column) {
    lines.verticals.push_back(static_cast<std::int32_t>(column));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t place = i * heads_per_kv + head % heads_per_kv + 1;
    const std::int64_t noise =  // no power of two shall lie between lines
        static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(step / 4 + 1));
    lines.slashes.push_back(static_cast<std::int32_t>(std::min(place * step + noise, length - 1)));
  }
  return lines;
}

/// Share of the causal pairs in the cover of the slashes, from offsets alone: a line at s stands
/// for offsets up to s + 63, as half of them are on average.
inline double slash_share(const Lines& lines, std::int64_t length) {
  double pairs = 0;
  std::int64_t end = 0;
  for (const std::int64_t slash : lines.slashes) {
    const std::int64_t begin = std::max(slash, end);
    end = std::max(end, std::min(slash + 64, length));
    const double count = static_cast<double>(std::max<std::int64_t>(end - begin, 0));
    pairs += count * (static_cast<double>(length) - (static_cast<double>(begin + end) - 1) / 2);
  }
  return pairs / (static_cast<double>(length) * static_cast<double>(length) / 2);
}

/// A local band and up to 20 bands as wide, so that all lines attend about `share` of the pairs. At
/// 1M tokens columns take less than their eighth and other draws are lighter than the first: 3.5 %
/// are attended where 5 % are aimed at. clustered_heads does better.
inline LineShape clustered(double share, std::int64_t length) {
  const double tokens = static_cast<double>(length);
  LineShape shape{
      .num_vertical =
          std::clamp<std::int64_t>(static_cast<std::int64_t>(share / 8 * tokens), 4, 1000),
      .local = 0,
      .bands = std::clamp<std::int64_t>(static_cast<std::int64_t>(share * tokens / 512), 1, 20),
      .width = 0};
  // The widest that does not exceed the share, which a single band alone would not.
  std::int64_t low = 1, high = std::max<std::int64_t>(1, static_cast<std::int64_t>(share * tokens));
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    shape.local = shape.width = middle;
    if (slash_share(draw_lines(shape, length, 0), length) > share * 7 / 8) {
      high = middle - 1;
    } else {
      low = middle;
    }
  }
  shape.local = shape.width = low;
  return shape;
}

/// The same, but as wide that `heads` heads with the draws 0, 1, ... attend `share` on average.
inline LineShape clustered_heads(double share, std::int64_t length, int heads) {
  LineShape shape = clustered(share, length);
  const double tokens = static_cast<double>(length);
  const double wanted = share - static_cast<double>(shape.num_vertical) / tokens;
  for (int step = 0; step < 3; ++step) {  // slashes attend nearly in proportion to the width
    double found = 0;
    for (int head = 0; head < heads; ++head) {
      found += slash_share(draw_lines(shape, length, static_cast<std::uint32_t>(head)), length);
    }
    const double width = static_cast<double>(shape.width) * wanted * heads / found;
    shape.local = shape.width =
        std::clamp<std::int64_t>(static_cast<std::int64_t>(width + 0.5), 1, length);
  }
  return shape;
}

}  // namespace minference::bench
