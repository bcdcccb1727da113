// What two neighbouring row blocks of a head meet, whatever the pattern, as lists of pieces: 32
// keys that may come from anywhere, for both row blocks or for one of them alone. The walk lives in
// shared memory; one warp decodes the plan in batches, a lane per piece. Kernels make stages of the
// pieces: device/pair_walk.cuh, sm90/stage_planner.cuh.
//
// Both row blocks, 64 rows apart, follow the same list of chunks (plan/format.h), so the keys that
// one meets at t the other meets at t + 64: most pieces are for both. Of a run of columns the two
// farthest pieces are the first row block's alone and the two nearest the second one's.
//
// Spans and lines come nearest first, so the diagonal before all else, and gathered columns last;
// blocks come in the order of their list.
#pragma once

#include <cstdint>

#include "device/plan_walk.cuh"
#include "device/stage.cuh"

namespace minference::cuda {

inline constexpr std::uint32_t kAllColumns = ~std::uint32_t{0};

/// Columns [begin, end) of a piece, as far as they lie in it.
__device__ inline std::uint32_t columns_between(std::int32_t begin, std::int32_t end) {
  if (begin < 0) begin = 0;
  if (end > plan::kChunk) end = plan::kChunk;
  return begin < end ? (kAllColumns >> (plan::kChunk - end)) & (kAllColumns << begin) : 0;
}

/// How many leading items of [0, count) satisfy `is_met`, which no item after the first that does
/// not. All lanes of a warp call it.
template <class IsMet>
__device__ std::int32_t count_leading(std::int32_t count, const IsMet& is_met) {
  const int lane = threadIdx.x % 32;
  std::int32_t low = 0, high = count;
  while (low < high) {
    const std::int32_t step = (high - low + 31) / 32;
    const std::int32_t at = low + lane * step;
    const int met = __popc(__ballot_sync(kAllLanes, at < high && is_met(at)));
    if (met < 32) {
      const std::int32_t first_unmet = low + met * step;
      if (first_unmet < high) high = first_unmet;
    }
    if (met > 0) low += (met - 1) * step + 1;
  }
  return low;
}

/// What a walk is about.
struct WalkSource {
  Lines lines;
  RowBlockLists lists[kTaskBlocks];
  HeadPlan head;
  std::int32_t num_keys;   ///< of the sequence
  bool is_whole;           ///< its rows are aligned and fill a tile's dimensions
  bool is_gathered_whole;  ///< so are the gathered ones
};

/// Which rows of two row blocks attend a key.
struct PieceRows {
  RowBlock blocks[kTaskBlocks];     ///< without a second one its key_end is 0
  const std::int32_t* verticals;    ///< of gathered columns
  const std::uint32_t* slash_bits;  ///< null, except for chunks in mode kExact

  /// Rows of row block `block` that attend a column of a piece.
  __device__ std::uint64_t attending(const Piece& piece, int block, int column) const {
    if ((piece.valid[block] >> column & 1) == 0) return 0;
    if (!piece.varies(block)) return kAllRows;
    const RowBlock& at = blocks[block];
    std::int32_t key = piece.row + column;
    if (piece.is_gathered()) {
      key = verticals[key];
    } else if (slash_bits != nullptr) {
      return bits_at(slash_bits, at.end - key - kRowBlock);
    }
    return attending_rows(at, key);
  }
};

/// `kLists` 3: pieces for both row blocks, for the first alone, for the second alone; 1: all in
/// one.
template <int kLists, int kLanes>
class PieceWalk {
 public:
  /// Begins part `part` of `num_parts` of what the row blocks from `first_block` on meet.
  /// `describe(source)`, called by one lane, says what the walk is about. As one warp; others may
  /// read once they have waited for it.
  template <class Describe>
  __device__ void begin(const Sequence& sequence, const Describe& describe,
                        std::int32_t first_block, std::int32_t part, std::int32_t num_parts) {
    const int lane = threadIdx.x % 32;
    if (lane == 0) describe(&source_);
    __syncwarp();
    const WalkSource& source = source_;
    if (lane < kTaskBlocks) {
      RowBlock block = row_block_at(sequence, source.head, first_block + lane);
      if (block.num_rows <= 0) block = {.end = block.end};  // meets nothing
      rows_.blocks[lane] = block;
    }
    __syncwarp();
    const RowBlock(&blocks)[kTaskBlocks] = rows_.blocks;
    const bool has_second = blocks[1].num_rows > 0;
    const std::int32_t last_end = blocks[has_second ? 1 : 0].end;
    const std::int32_t last_key_end = blocks[has_second ? 1 : 0].key_end;
    const std::int32_t num_tiles = source.lists[0].num_tiles > source.lists[1].num_tiles
                                       ? source.lists[0].num_tiles
                                       : source.lists[1].num_tiles;
    std::int32_t counts[kSegments] = {kTileHalves * num_tiles, 0};
    Kind kind = Kind::kTiles;
    if (has_lines(source.head)) {
      const Lines& lines = source.lines;
      if (lines.mode != SlashMode::kReference) {
        kind = Kind::kChunks;
        counts[0] = lines.num_chunks;
      }
      counts[1] = (lines.num_vertical + plan::kChunk - 1) / plan::kChunk;
      if (num_parts > 1) {  // equal parts of what is met, not of the lists
        if (kind == Kind::kChunks) {
          counts[0] = count_leading(
              counts[0], [&](std::int32_t i) { return nearest(lines.chunks[i]) <= last_end; });
        }
        counts[1] = count_leading(counts[1], [&](std::int32_t i) {
          return lines.verticals[i * plan::kChunk] < last_key_end;
        });
      }
    } else if (!has_tiles(source.head)) {
      kind = Kind::kSpans;
#pragma unroll
      for (int segment = 0; segment < kSegments; ++segment) {
        const int index = kSegments - 1 - segment;  // the window, then the sink
        const Span first = span_of(blocks[0], index), second = span_of(blocks[1], index);
        const std::int32_t begin = first.begin < first.end ? first.begin : second.begin;
        const std::int32_t end = second.begin < second.end ? second.end : first.end;
        counts[segment] = (end - begin + plan::kChunk - 1) / plan::kChunk;
        if (lane == 0) {
          spans_[segment][0] = first;
          spans_[segment][1] = second;
          last_span_row_[segment] = begin + (counts[segment] - 1) * plan::kChunk;
        }
      }
    }
    if (lane == 0) {
      kind_ = kind;
      rows_.verticals = source.lines.verticals;
      rows_.slash_bits = kind == Kind::kChunks && source.lines.mode == SlashMode::kExact
                             ? source.lines.slash_bits
                             : nullptr;
      last_end_ = last_end;
      last_key_end_ = last_key_end;
#pragma unroll
      for (int segment = 0; segment < kSegments; ++segment) {
        const auto share = [&](std::int32_t n) {
          return static_cast<std::int32_t>(std::int64_t{counts[segment]} * n / num_parts);
        };
        next_[segment] = share(part);
        end_[segment] = share(part + 1);
      }
      segment_ = 0;
#pragma unroll
      for (std::int32_t& listed : num_listed_) listed = 0;
    }
    __syncwarp();
  }

  /// Whether everything is listed.
  __device__ bool is_over() const { return segment_ == kSegments; }
  /// Whether decode() needs find_vertical_pieces() before it.
  __device__ bool is_at_verticals() const { return kind_ != Kind::kSpans && segment_ == 1; }
  __device__ bool has_second() const { return rows_.blocks[1].num_rows > 0; }
  __device__ const PieceRows& rows() const { return rows_; }
  __device__ const WalkSource& source() const { return source_; }

  __device__ int num_listed(int list) const { return num_listed_[list]; }
  __device__ Piece& listed(int list, int i) { return pieces_[list * kCapacity + i]; }
  __device__ const Piece& listed(int list, int i) const { return pieces_[list * kCapacity + i]; }

  /// Finds the next pieces of gathered columns: a warp per piece, a lane per column. Warps that
  /// share the work call it with their number.
  __device__ void find_vertical_pieces(int warp, int num_warps) {
    const Lines& lines = source_.lines;
    const int lane = threadIdx.x % 32;
#pragma unroll 4
    for (int n = warp; n < kLanes; n += num_warps) {
      Piece piece{(next_[1] + n) * plan::kChunk, Piece::kGathered, {0, 0}};
      const std::int32_t i = piece.row + lane;
      const bool is_line = next_[1] + n < end_[1] && i < lines.num_vertical;
      const std::int32_t key = is_line ? lines.verticals[i] : last_key_end_;
#pragma unroll
      for (int block = 0; block < kTaskBlocks; ++block) {
        const RowBlock& at = rows_.blocks[block];
        const bool is_attended = is_vertical_attended(at, lines, source_.lists[block], key);
        const bool varies = is_attended && at.end - key < kRowBlock;
        piece.valid[block] = __ballot_sync(kAllLanes, is_attended);
        if (__any_sync(kAllLanes, varies)) piece.flags |= Piece::kVaries << block;
      }
      if (key >= last_key_end_) piece.flags |= Piece::kTooFar;  // by the first lane
      if (lane == 0) vertical_pieces_[n] = piece;
    }
  }

  /// Decodes the next pieces and appends them to the lists, at most two per lane. As one warp.
  __device__ void decode() {
    const int lane = threadIdx.x % 32;
    Piece piece{}, own{};
    bool is_met = true;
    const std::int32_t i = next_[segment_] + lane;
    const bool is_in_batch = lane < kLanes && i < end_[segment_];
    if (is_in_batch) {
      if (is_at_verticals()) {
        piece = vertical_pieces_[lane];
        is_met = (piece.flags & Piece::kTooFar) == 0;
      } else if (kind_ == Kind::kChunks) {
        piece = chunk_piece(i, &own, &is_met);
      } else if (kind_ == Kind::kTiles) {
        piece = tile_piece(i, &own);
      } else {
        piece = span_piece(i);
      }
    }
    const bool is_segment_over =
        __any_sync(kAllLanes, !is_met) || next_[segment_] + kLanes >= end_[segment_];
    append(piece);
    append(own);
    int segment = segment_ + (is_segment_over ? 1 : 0);
    if (segment == 1 && is_segment_over && next_[1] >= end_[1]) ++segment;
    __syncwarp();
    if (lane == 0) {
      next_[segment_] += kLanes;
      segment_ = segment;
    }
    __syncwarp();
  }

  /// Removes the first `count` pieces of a list; no more than kMaxWaiting may be left. As one warp.
  __device__ void drop(int list, int count) {
    const int lane = threadIdx.x % 32;
    const int waiting = num_listed_[list] > count ? num_listed_[list] - count : 0;
    Piece piece{};
    if (lane < waiting) piece = listed(list, count + lane);
    __syncwarp();
    if (lane < waiting) listed(list, lane) = piece;
    if (lane == 0) num_listed_[list] = waiting;
    __syncwarp();
  }

 protected:
  static constexpr int kMaxWaiting = 4;
  static constexpr int kCapacity = kMaxWaiting + 2 * kLanes;

 private:
  enum class Kind { kSpans, kChunks, kTiles };  // of the first segment
  static constexpr int kSegments = 2;
  static constexpr int kTileHalves = kRowBlock / plan::kChunk;

  /// t of a chunk's nearest column. The plan keeps that of the farthest.
  __device__ static std::int32_t nearest(const plan::PlanChunk& chunk) {
    return chunk.rel + 1 - __popc(chunk.valid);
  }
  /// Columns of a chunk in the 32 keys that end with its nearest one.
  __device__ static std::uint32_t columns_of(const plan::PlanChunk& chunk) {
    return kAllColumns << (plan::kChunk - __popc(chunk.valid));
  }

  /// Columns of the 32 keys from `key` on that row block `block` may attend.
  __device__ std::uint32_t columns_in_reach(std::int32_t key, int block) const {
    return columns_between(-key, rows_.blocks[block].key_end - key);
  }
  /// kVaries, if the diagonal passes through the 32 keys from `key` on.
  __device__ std::uint32_t varies_at(std::int32_t key, int block) const {
    const bool varies = key + plan::kChunk - 1 > rows_.blocks[block].end - kRowBlock;
    return varies ? Piece::kVaries << block : 0;
  }

  __device__ Piece span_piece(std::int32_t i) const {
    Piece piece{last_span_row_[segment_] - i * plan::kChunk, 0, {0, 0}};
    for (int block = 0; block < kTaskBlocks; ++block) {
      const RowBlock& at = rows_.blocks[block];
      const Span& span = spans_[segment_][block];
      piece.valid[block] = columns_between(span.begin - piece.row, span.end - piece.row);
      const bool is_in_window =
          !at.has_window || piece.row + plan::kChunk <= at.sink || at.end - piece.row <= at.window;
      piece.flags |= is_in_window ? varies_at(piece.row, block) : Piece::kVaries << block;
    }
    return piece;
  }

  /// The piece of chunk `i` for the first row block, and for the second one if that has a chunk at
  /// the same keys. `own`: the second one's piece of chunk `i`, if the first has none there.
  __device__ Piece chunk_piece(std::int32_t i, Piece* own, bool* is_met) const {
    const Lines& lines = source_.lines;
    const plan::PlanChunk chunk = lines.chunks[i];
    const std::int32_t near = nearest(chunk);
    *is_met = near <= last_end_;
    if (!*is_met) return {};
    Piece piece{rows_.blocks[0].end - near - (plan::kChunk - 1), 0, {0, 0}};
    if (near <= rows_.blocks[0].end) {
      piece.valid[0] = columns_of(chunk) & columns_in_reach(piece.row, 0);
      // A chunk 64 further on is the next but one, or the next if this one ends a run.
      for (std::int32_t j = i + 1; j <= i + 2 && j < lines.num_chunks; ++j) {
        const plan::PlanChunk other = lines.chunks[j];
        if (nearest(other) == near + kRowBlock) {
          piece.valid[1] = columns_of(other) & columns_in_reach(piece.row, 1);
        }
      }
      finish_line_piece(&piece);
    }
    bool has_partner = false;
    for (std::int32_t j = i > 2 ? i - 2 : 0; j < i; ++j) {
      has_partner |= nearest(lines.chunks[j]) == near - kRowBlock;
    }
    if (!has_partner) {
      own->row = rows_.blocks[1].end - near - (plan::kChunk - 1);
      own->valid[1] = columns_of(chunk) & columns_in_reach(own->row, 1);
      finish_line_piece(own);
    }
    return piece;
  }

  __device__ void finish_line_piece(Piece* piece) const {
    if (source_.lines.mode != SlashMode::kExact) {
      piece->flags |= varies_at(piece->row, 0) | varies_at(piece->row, 1);
      return;
    }
    const std::uint32_t others = ~bits32_at(source_.lines.vertical_bits, piece->row);
    piece->valid[0] &= others;
    piece->valid[1] &= others;
    piece->flags |= Piece::kVaries | Piece::kVaries << 1;
  }

  /// Half `i` of a tile of the first row block, and of the second one if that lists it as well.
  /// `own`: half `i` of a tile that the second one lists alone.
  __device__ Piece tile_piece(std::int32_t i, Piece* own) const {
    const auto piece_of = [&](std::int32_t tile) {
      Piece piece{
          tile * source_.lists[0].keys_per_tile + i % kTileHalves * plan::kChunk, 0, {0, 0}};
      piece.flags = varies_at(piece.row, 0) | varies_at(piece.row, 1);
      return piece;
    };
    const std::int32_t n = i / kTileHalves;
    const RowBlockLists &first = source_.lists[0], &second = source_.lists[1];
    Piece piece{};
    if (n < first.num_tiles) {
      const std::int32_t tile = first.tiles[n];
      piece = piece_of(tile);
      piece.valid[0] = columns_in_reach(piece.row, 0);
      if (holds(second.tiles, second.num_tiles, tile)) {
        piece.valid[1] = columns_in_reach(piece.row, 1);
      }
    }
    if (n < second.num_tiles) {
      const std::int32_t tile = second.tiles[n];
      if (!holds(first.tiles, first.num_tiles, tile)) {
        *own = piece_of(tile);
        own->valid[1] = columns_in_reach(own->row, 1);
      }
    }
    return piece;
  }

  /// Appends every lane's piece to the list it belongs to, in the order of the lanes.
  __device__ void append(Piece piece) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int block = 0; block < kTaskBlocks; ++block) {
      const std::uint32_t columns = piece.valid[block];
      if (columns == 0) continue;
      piece.flags |= Piece::kNeeded << block;
      if (columns != kAllColumns || piece.varies(block)) piece.flags |= Piece::kMasked << block;
      if (columns << 16 == 0) piece.flags |= Piece::kHalf << block;
    }
    const bool is_source_whole = piece.is_gathered() ? source_.is_gathered_whole : source_.is_whole;
    const std::int32_t num_rows =
        piece.is_gathered() ? source_.lines.num_vertical : source_.num_keys;
    if (is_source_whole && piece.row >= 0 && piece.row + plan::kChunk <= num_rows) {
      piece.flags |= Piece::kWhole;
    }
    const std::uint32_t needed = piece.flags & (Piece::kNeeded | Piece::kNeeded << 1);
    // Without a second row block there is nobody to share stages with.
    const bool is_shared =
        kLists == 1 || !has_second() || needed == (Piece::kNeeded | Piece::kNeeded << 1);
    const int list_of_piece = is_shared ? 0 : needed == Piece::kNeeded ? 1 : 2;
#pragma unroll
    for (int list = 0; list < kLists; ++list) {
      const bool is_here = needed != 0 && list_of_piece == list;
      const unsigned lanes = __ballot_sync(kAllLanes, is_here);
      const int before = num_listed_[list];
      if (is_here) listed(list, before + __popc(lanes & ((1u << lane) - 1))) = piece;
      __syncwarp();
      if (lane == 0) num_listed_[list] = before + __popc(lanes);
      __syncwarp();
    }
  }

  WalkSource source_;
  PieceRows rows_;
  Span spans_[kSegments][kTaskBlocks];
  std::int32_t last_span_row_[kSegments];  // of the nearest piece
  Kind kind_;
  std::int32_t last_end_;  // e and key_end of the last row block that exists
  std::int32_t last_key_end_;
  std::int32_t next_[kSegments], end_[kSegments];
  std::int32_t segment_;
  std::int32_t num_listed_[4];        // of kLists; read at once, so all of them are written
  Piece pieces_[kLists * kCapacity];  // list by list
  Piece vertical_pieces_[kLanes];
};

}  // namespace minference::cuda
