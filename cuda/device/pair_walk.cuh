// What two neighbouring row blocks of a head meet, whatever the pattern, as a stream of stages that
// both work on: 64 keys (32 with kPiecesOfStage 1), in pieces of 32 that may come from anywhere.
// The walk lives in shared memory; one warp decodes plans in batches, a lane per piece, and all
// warps read the stages.
//
// Both row blocks, 64 rows apart, follow the same list of chunks (plan/format.h), so the keys that
// one meets at t the other meets at t + 64: most pieces are for both. Of a run of columns the two
// farthest pieces are the first row block's alone and the two nearest the second one's. Those go
// side by side into stages of which each row block multiplies its half, so that neither waits.
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

template <int kPiecesOfStage, int kLanes>
class PairWalk {
 public:
  /// Begins part `part` of `num_parts` of what the row blocks from `first_block` on meet. All
  /// threads of the block call it, then wait for each other.
  __device__ void begin(const Sequence& sequence, const WalkSource& source,
                        std::int32_t first_block, std::int32_t part, std::int32_t num_parts) {
    if (threadIdx.x >= 32) return;
    const int lane = threadIdx.x;
    if (lane < kTaskBlocks) {
      RowBlock block = row_block_at(sequence, source.head, first_block + lane);
      if (block.num_rows <= 0) block = {.end = block.end};  // meets nothing
      blocks_[lane] = block;
    }
    __syncwarp();
    const bool has_second = blocks_[1].num_rows > 0;
    const std::int32_t last_end = blocks_[has_second ? 1 : 0].end;
    const std::int32_t last_key_end = blocks_[has_second ? 1 : 0].key_end;
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
        const Span first = span_of(blocks_[0], segment), second = span_of(blocks_[1], segment);
        const std::int32_t begin = first.begin < first.end ? first.begin : second.begin;
        const std::int32_t end = second.begin < second.end ? second.end : first.end;
        counts[segment] = (end - begin + plan::kChunk - 1) / plan::kChunk;
        if (lane == 0) {
          spans_[segment][0] = first;
          spans_[segment][1] = second;
          span_begin_[segment] = begin;
        }
      }
    }
    if (lane != 0) return;
    source_ = source;
    kind_ = kind;
    has_second_ = has_second;
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
    num_shared_stages_ = num_stages_ = 0;
#pragma unroll
    for (int list = 0; list < kLists; ++list) num_listed_[list] = 0;
  }

  /// The stage after `latest`, the first one after none; none at the end. All threads of the block
  /// call it. Where stages are decoded, which replaces those there were, they wait for each other.
  __device__ Stage next(const Stage& latest) {
    int number = latest.exists() ? number_of(latest) + 1 : 0;
    if (number == num_stages_) {
      plan_stages();
      number = 0;
    }
    Stage stage;
    if (num_stages_ == 0) return stage;
    const int single = number - num_shared_stages_;
#pragma unroll
    for (int n = 0; n < kPiecesOfStage; ++n) {
      const int place =
          kLists == 1 || single < 0 ? number * kPiecesOfStage + n : (n + 1) * kCapacity + single;
      stage.add_piece(n, place, pieces_[place].flags);
    }
    stage.set_masks(latest.masks() ^ 1);
    return stage;
  }

  __device__ const Piece& piece(const Stage& stage, int n) const { return pieces_[stage.place(n)]; }

  /// Rows of row block `block` that attend a column of a piece.
  __device__ std::uint64_t rows(const Piece& piece, int block, int column) const {
    if ((piece.valid[block] >> column & 1) == 0) return 0;
    if (!piece.varies(block)) return kAllRows;
    const RowBlock& at = blocks_[block];
    std::int32_t key = piece.row + column;
    if (piece.is_gathered()) {
      key = source_.lines.verticals[key];
    } else if (kind_ == Kind::kChunks && source_.lines.mode == SlashMode::kExact) {
      return bits_at(source_.lines.slash_bits, at.end - key - kRowBlock);
    }
    return attending_rows(at, key);
  }

 private:
  /// Decodes further stages; none at the end.
  __device__ void plan_stages() {
    while (true) {
      const bool is_over = segment_ == kSegments, is_gathered = is_at_verticals();
      __syncthreads();
      if (is_gathered) {
        find_vertical_pieces();
        __syncthreads();
      }
      if (threadIdx.x < 32) plan_batch();
      __syncthreads();
      if (is_over || num_stages_ > 0) return;
    }
  }

  enum class Kind { kSpans, kChunks, kTiles };  // of the first segment
  static constexpr int kSegments = 2;
  static constexpr int kTileHalves = kRowBlock / plan::kChunk;
  static constexpr int kLists = kPiecesOfStage == 1 ? 1 : 3;  // for both; for one alone
  // Pieces that wait for a partner, at most, and those of a batch: two per lane.
  static constexpr int kMaxWaiting = 4;
  static constexpr int kCapacity = kMaxWaiting + 2 * kLanes;

  /// t of a chunk's nearest column. The plan keeps that of the farthest.
  __device__ static std::int32_t nearest(const plan::PlanChunk& chunk) {
    return chunk.rel + 1 - __popc(chunk.valid);
  }
  /// Columns of a chunk in the 32 keys that end with its nearest one.
  __device__ static std::uint32_t columns_of(const plan::PlanChunk& chunk) {
    return kAllColumns << (plan::kChunk - __popc(chunk.valid));
  }

  __device__ bool is_at_verticals() const { return kind_ != Kind::kSpans && segment_ == 1; }

  /// Columns of the 32 keys from `key` on that row block `block` may attend.
  __device__ std::uint32_t columns_in_reach(std::int32_t key, int block) const {
    return columns_between(-key, blocks_[block].key_end - key);
  }
  /// kVaries, if the diagonal passes through the 32 keys from `key` on.
  __device__ std::uint32_t varies_at(std::int32_t key, int block) const {
    const bool varies = key + plan::kChunk - 1 > blocks_[block].end - kRowBlock;
    return varies ? Piece::kVaries << block : 0;
  }

  __device__ Piece span_piece(std::int32_t i) const {
    Piece piece{span_begin_[segment_] + i * plan::kChunk, 0, {0, 0}};
    for (int block = 0; block < kTaskBlocks; ++block) {
      const RowBlock& at = blocks_[block];
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
    Piece piece{blocks_[0].end - near - (plan::kChunk - 1), 0, {0, 0}};
    if (near <= blocks_[0].end) {
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
      own->row = blocks_[1].end - near - (plan::kChunk - 1);
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

  /// Finds the next pieces of gathered columns: a warp per piece, a lane per column.
  __device__ void find_vertical_pieces() {
    const Lines& lines = source_.lines;
    const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
#pragma unroll 4
    for (int n = threadIdx.x / 32; n < kLanes; n += num_warps) {
      Piece piece{(next_[1] + n) * plan::kChunk, Piece::kGathered, {0, 0}};
      const std::int32_t i = piece.row + lane;
      const bool is_line = next_[1] + n < end_[1] && i < lines.num_vertical;
      const std::int32_t key = is_line ? lines.verticals[i] : last_key_end_;
#pragma unroll
      for (int block = 0; block < kTaskBlocks; ++block) {
        const RowBlock& at = blocks_[block];
        const bool is_attended = is_vertical_attended(at, lines, source_.lists[block], key);
        const bool varies = is_attended && at.end - key < kRowBlock;
        piece.valid[block] = __ballot_sync(kAllLanes, is_attended);
        if (__any_sync(kAllLanes, varies)) piece.flags |= Piece::kVaries << block;
      }
      if (key >= last_key_end_) piece.flags |= Piece::kTooFar;  // by the first lane
      if (lane == 0) vertical_pieces_[n] = piece;
    }
  }

  /// As one warp: decodes the next pieces and makes stages of them.
  __device__ void plan_batch() {
    const int lane = threadIdx.x;
    keep_waiting();
    if (segment_ == kSegments) {
      make_stages(true);
      return;
    }
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
    make_stages(segment == kSegments);
  }

  /// Moves what is in no stage yet to the front.
  __device__ void keep_waiting() {
    const int lane = threadIdx.x;
#pragma unroll
    for (int list = 0; list < kLists; ++list) {
      const int used =
          list == 0 ? num_shared_stages_ * kPiecesOfStage : num_stages_ - num_shared_stages_;
      const int waiting = num_listed_[list] > used ? num_listed_[list] - used : 0;
      Piece piece{};
      if (lane < waiting) piece = place_of(list, used + lane);
      __syncwarp();
      if (lane < waiting) place_of(list, lane) = piece;
      if (lane == 0) num_listed_[list] = waiting;
    }
    __syncwarp();
  }

  /// Appends every lane's piece to the list it belongs to, in the order of the lanes.
  __device__ void append(Piece piece) {
    const int lane = threadIdx.x;
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
        kLists == 1 || !has_second_ || needed == (Piece::kNeeded | Piece::kNeeded << 1);
    const int list_of_piece = is_shared ? 0 : needed == Piece::kNeeded ? 1 : 2;
#pragma unroll
    for (int list = 0; list < kLists; ++list) {
      const bool is_here = needed != 0 && list_of_piece == list;
      const unsigned lanes = __ballot_sync(kAllLanes, is_here);
      const int before = num_listed_[list];
      if (is_here) place_of(list, before + __popc(lanes & ((1u << lane) - 1))) = piece;
      __syncwarp();
      if (lane == 0) num_listed_[list] = before + __popc(lanes);
      __syncwarp();
    }
  }

  /// Of the stages that were decoded with it.
  __device__ int number_of(const Stage& stage) const {
    const int place = stage.place(0);
    return kLists == 1 || place < kCapacity ? place / kPiecesOfStage
                                            : place - kCapacity + num_shared_stages_;
  }
  __device__ Piece& place_of(int list, int i) { return pieces_[list * kCapacity + i]; }

  /// Pairs up pieces; at the end also those without a partner.
  __device__ void make_stages(bool is_end) {
    const int lane = threadIdx.x;
    const int more = is_end ? kPiecesOfStage - 1 : 0;
    const int shared = (num_listed_[0] + more) / kPiecesOfStage;
    int single = 0;
    if constexpr (kLists == 3) {
      const int first = num_listed_[1], second = num_listed_[2];
      const int fewer = first < second ? first : second, larger = first < second ? second : first;
      single = is_end || larger - fewer <= kMaxWaiting ? (is_end ? larger : fewer)
                                                       : larger - kMaxWaiting;
      // Partners that do not exist.
      if (lane == 0 && shared * kPiecesOfStage > num_listed_[0]) {
        place_of(0, num_listed_[0]) = {};
      }
      for (int i = first + lane; i < single; i += 32) place_of(1, i) = {};
      for (int i = second + lane; i < single; i += 32) place_of(2, i) = {};
    }
    if (lane == 0) {
      num_shared_stages_ = shared;
      num_stages_ = shared + single;
    }
  }

  WalkSource source_;
  RowBlock blocks_[kTaskBlocks];  // without a second one its key_end is 0
  Span spans_[kSegments][kTaskBlocks];
  std::int32_t span_begin_[kSegments];
  Kind kind_;
  bool has_second_;
  std::int32_t last_end_;  // e and key_end of the last row block that exists
  std::int32_t last_key_end_;
  std::int32_t next_[kSegments], end_[kSegments];
  std::int32_t segment_;
  std::int32_t num_shared_stages_, num_stages_;
  std::int32_t num_listed_[kLists];
  Piece pieces_[kLists * kCapacity];  // list by list
  Piece vertical_pieces_[kLanes];
};

}  // namespace minference::cuda
