// One call on the CPU: memory, order of the work, and who does it.
//
// The work is cut into units, one kv head of one sequence, and done in groups of units that fit a
// memory budget: transposed values, scores and plans exist for one group at a time. Within a group
// every step is one parallel loop:
//
//   pack V | pool K, then for every chunk of queries that estimates anew (one, as a rule):
//   row stats -> line sums -> select lines, plan -> gather verticals -> attend
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/api.h"
#include "cpu/chunk_cursor.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "plan/arena.h"

namespace minference::cpu {

/// Estimation tasks over the keys of a sequence, and floats that one keeps of its head.
inline std::int64_t num_key_segments(std::int64_t kv_len) {
  return (kv_len + kKeySegment - 1) / kKeySegment;
}
inline constexpr std::int64_t kSlashSlot = kKeySegment + kRowBlock;  // slash scores
inline constexpr std::int64_t kStatsSlot = 2 * kRowBlock;            // maxima and sums of rows

using plan::Arena;

class LayerRun {
 public:
  LayerRun(const Problem& problem, const AttentionKernel& kernel, void* workspace);

  std::size_t workspace_bytes() const { return workspace_bytes_; }
  void attention();
  void plan_stats(PlanStats* stats);
  void estimate(const EstimatedLines& lines);

 private:
  /// What is kept for one query head of a unit.
  struct Head {
    HeadPlan plan;
    bool needs_estimate;
    float* column_scores;  // [kv_len]
    float* slash_scores;   // per segment [kKeySegment + kRowBlock], later by offset [kv_len]
    float* row_stats;      // [segments + 1][2][kRowBlock]: maxima and sums; the last is the total
    void* gathered_k;      // [verticals][head_dim]
    void* gathered_v;      // the same; null if packed
    std::uint16_t* gathered_packed_v;
    std::uint8_t* gathered_nonfinite;
  };
  /// One kv head of one sequence.
  struct Unit {
    Sequence sequence;
    std::int64_t head_kv;
    std::int64_t index_of_sequence;
    std::uint16_t* packed_v;
    std::uint8_t* has_nonfinite;
    float* pooled_k;          // [key blocks][head_dim]
    Head* heads;              // [heads_per_kv]
    std::int64_t task_begin;  // first attention task of the unit
    // The chunk of queries that is planned: rows [row_begin, row_end) and the keys they may attend.
    std::int64_t row_begin;
    std::int64_t row_end;
    std::int64_t chunk_kv_len;
  };
  struct WorkerScratch {
    void* kernel;
    std::int32_t* tiles;
    std::int32_t* columns;
    float* block_scores;
  };
  struct HeadTask {
    Unit* unit;
    Head* head;
    std::int64_t head_q;
  };

  void measure();
  void take_memory(Arena* arena);
  void take_unit(Arena* arena, Unit* unit);
  void take_head(Arena* arena, Head* head);
  template <class Step>
  void for_each_group(const Step& step);
  void begin_group(std::int64_t unit_begin, std::int64_t unit_end);
  bool begin_query_chunk(std::int64_t index);

  void pack_values();
  void pool_keys();
  void estimate_scores();
  void merge_row_stats(const Unit& unit, const Head& head);
  void merge_slash_scores(const Unit& unit, Head* head);
  void build_plans();
  void choose_lines(const HeadTask& task);
  std::int32_t read_lines(const IndexView& view, const HeadTask& task, std::int32_t* lines) const;
  void gather_verticals();
  void gather(const HeadTask& task);
  void attend();
  void attend_row_blocks(const HeadTask& task, std::int64_t block_begin, std::int64_t block_end,
                         const WorkerScratch& scratch) const;
  RowBlockTask row_block_task(const HeadTask& task, std::int64_t row_block) const;
  void clear_padding_rows() const;
  RowLists row_lists(const HeadTask& task, std::int64_t row_block,
                     const WorkerScratch& scratch) const;
  void add_stats(const HeadTask& task, const WorkerScratch& scratch, PlanStats* stats) const;
  float* lse_row(std::int64_t batch, std::int64_t head, std::int64_t row) const;
  /// Scratch that one head's estimation takes.
  static std::int64_t estimation_bytes(std::int64_t kv_len);

  HeadTask head_task(std::int64_t index);
  /// Given lines are planned and gathered once, estimated ones for every chunk of queries.
  bool must_plan(const HeadTask& task) const;
  template <class Step>
  void for_each_segment(const Step& step);
  EstimateTask estimate_task(const HeadTask& task, std::int64_t segment, void* scratch) const;
  KeySource sequence_keys(const Unit& unit) const;
  const void* row_of(const TensorView& view, std::int64_t batch, std::int64_t head,
                     std::int64_t row) const;

  const Problem& problem_;
  const AttentionKernel& kernel_;
  Workers workers_;
  std::size_t element_bytes_;
  std::size_t workspace_bytes_ = 0;

  // Upper bounds over all sequences and heads.
  std::int64_t max_q_len_ = 0;
  std::int64_t max_kv_len_ = 0;
  std::int64_t max_blocks_ = 0;  // key blocks of 64
  std::int64_t max_vertical_ = 0;
  std::int64_t max_slash_ = 0;
  std::int64_t max_tiles_ = 0;
  bool has_estimates_ = false;
  bool has_lines_ = false;
  bool has_pooling_ = false;
  std::int64_t num_units_ = 0;
  std::int64_t units_per_group_ = 1;

  WorkerScratch* worker_scratch_ = nullptr;  // [workers]
  Unit* units_ = nullptr;                    // [units_per_group]
  std::int64_t group_size_ = 0;
  std::int64_t group_max_kv_ = 0;
  bool is_first_query_chunk_ = true;
};

}  // namespace minference::cpu
