/* What the kernels and the Rust layer share: launch parameters and constants, in plain C.
 *
 * Every kernel takes one of these structs by value. src/abi.rs is made from this header by `cargo xtask bindings`.
 * Pointers are device addresses, strides count elements between rows, and every index fits 32 bits unless it is a
 * product of two dimensions: the Rust layer checks that before a launch. */
#pragma once

#ifdef __CUDACC_RTC__
typedef unsigned int uint32_t;
#else
#include <stdint.h>
#endif

#ifdef __cplusplus
#define ABI_ASSERT(CONDITION, TEXT) static_assert(CONDITION, TEXT)
#define ABI_ALIGNED(BYTES) alignas(BYTES)
#else
#define ABI_ASSERT(CONDITION, TEXT) _Static_assert(CONDITION, TEXT)
#define ABI_ALIGNED(BYTES) _Alignas(BYTES)
#endif

enum {
  /* Low-rank segments of one layer. */
  LORA_MAX_SEGMENTS = 16,
  /* The largest rank of one segment. */
  LORA_MAX_RANK = 512,
  /* Tokens that the decode kernels take in one launch. */
  LORA_DECODE_MAX_TOKENS = 16,
  /* Threads of a decode CTA: on CUDA cores and with the weight's rows on tensor cores; with its columns on tensor
   * cores, whose accumulators take more registers. */
  LORA_DECODE_THREADS = 512,
  LORA_DECODE_COLUMN_MMA_THREADS = 256,
  /* Rows of A that one ticket stands for, at most. */
  LORA_SHRINK_ROWS = 4,
  /* The forward kernels' T: every segment's rank is rounded up to this, ... */
  LORA_FORWARD_RANK_STEP = 16,
  /* ... and a tile of T has so many columns, and as many rows as a tile of y. */
  LORA_FORWARD_T_COLUMNS = 64,
  /* Columns of T, of all segments together, that the kernels with a fused shrink compute beside each tile of y. */
  LORA_FORWARD_FUSED_RANK = 32,
  /* Threads of a CTA of the kernels on wgmma: two warpgroups that multiply, one that copies. */
  LORA_FORWARD_WGMMA_THREADS = 384,
};

/* What happens to an output before the residual is added. */
enum {
  LORA_IDENTITY = 0,
  LORA_RELU = 1,
  /* 0.5x(1 + tanh(sqrt(2/pi)(x + 0.044715x^3))) */
  LORA_GELU_NEW = 2,
};

/* What makes a low-rank term: scale * b a. */
typedef struct LoraFactors {
  const void *a; /* [rank, depth]; of dx [rank, columns] */
  const void *b; /* [columns of the term, rank] */
  uint32_t a_stride;
  uint32_t b_stride;
  uint32_t rank;
  float scale;
} LoraFactors;
ABI_ASSERT(sizeof(LoraFactors) == 32, "LoraFactors is shared with Rust");

/* One low-rank term: y[:, begin..end] += scale * (x a^T) b^T. In the launch of dx, whose x is dy and whose y is dx, begin and
 * end count the depth: y += mask/(1 - p) (scale * x[:, begin..end] b) a. */
typedef struct LoraSegment {
  LoraFactors factors;
  uint32_t begin;
  uint32_t end;
  /* First of this segment's columns in T = [x a_0^T, x a_1^T, ...]. In the forward kernels' workspace every segment has
   * whole steps of LORA_FORWARD_RANK_STEP columns. */
  uint32_t t_begin;
  /* The same where no segment's rank is rounded up: its place in the T that a caller asked for. */
  uint32_t packed_begin;
} LoraSegment;
ABI_ASSERT(sizeof(LoraSegment) == 48, "LoraSegment is shared with Rust");

/* y = activation(x W0^T + bias + sum of segments) + residual, for at most LORA_DECODE_MAX_TOKENS tokens. */
typedef struct LoraDecode {
  const void *x;        /* [tokens, depth] */
  const void *weight;   /* rows kernels: [columns, depth]; columns kernels: [depth, columns] */
  const void *bias;     /* [columns], or null */
  const void *residual; /* [tokens, columns], or null; may be y */
  void *y;              /* [tokens, columns] */
  /* Epoch of the workspace's next launch in the upper half, tickets drawn by this one in the lower. Zero at first,
   * and left ready for the next launch by each. */
  unsigned long long *ticket;
  /* [tokens, total_rank]: a value of T in the lower half of each word, the epoch that wrote it in the upper. */
  unsigned long long *t;
  /* [tiles, splits, tokens, tile columns] partial sums and [tiles] arrivals, where the depth is split. */
  float *partial;
  uint32_t *arrivals;
  /* Holds the address of the factors that the segments have in this launch, from slot_begin on, so that a captured graph
   * runs with others once it holds another: of no higher rank than the segments' own. Null: their own. */
  const LoraFactors *const *slot;
  uint32_t tokens;
  uint32_t depth;
  uint32_t columns;
  uint32_t total_rank;
  uint32_t x_stride;
  uint32_t weight_stride;
  uint32_t y_stride;
  uint32_t residual_stride;
  /* Output columns of one CTA. */
  uint32_t tile_columns;
  /* On CUDA cores, the threads that share a row of the weight; a power of two. */
  uint32_t row_threads;
  /* CTAs that share a tile's depth, and the depth of each. */
  uint32_t splits;
  uint32_t split_depth;
  /* Rows of A that a ticket stands for. */
  uint32_t shrink_rows;
  /* The largest rank of a segment, rounded up to whole chunks of 16 bytes: columns of T in shared memory. */
  uint32_t widest_rank;
  uint32_t activation; /* enum LoraActivation */
  uint32_t segment_count;
  uint32_t slot_begin;
  uint32_t reserved;
  LoraSegment segments[LORA_MAX_SEGMENTS];
} LoraDecode;
ABI_ASSERT(sizeof(LoraDecode) == 10 * 8 + 18 * 4 + 48 * LORA_MAX_SEGMENTS, "LoraDecode is shared with Rust");

/* Which elements of an adapter's input are dropped: tile/dropout.h. */
typedef struct LoraDropout {
  const uint32_t *step; /* added to the offset, or null: so a captured graph's replays differ */
  uint32_t seed_low;
  uint32_t seed_high;
  uint32_t layer;
  uint32_t offset;
  uint32_t threshold; /* of 65536, those below are dropped; 0: none */
  float scale;        /* 65536 / (65536 - threshold) */
} LoraDropout;
ABI_ASSERT(sizeof(LoraDropout) == 8 + 6 * 4, "LoraDropout is shared with Rust");

/* y = activation(x W0^T + bias + sum of segments) + residual for any number of tokens. Of the launch's tasks the first
 * row_tiles * t_tiles * t_splits to be drawn are tiles of T, the others tiles of y.
 *
 * The kernels of dx = dy W0 + segments + residual take the same: x is dy, depth the layer's outputs, y is dx, columns the
 * layer's inputs, T is Q; t_out is null, and column_tiles 0 where nobody wants dx. */
typedef struct LoraForward {
  const void *x;        /* [tokens, depth] */
  const void *weight;   /* rows kernels: [columns, depth]; columns kernels: [depth, columns] */
  const void *bias;     /* [columns], or null */
  const void *residual; /* [tokens, columns], or null; may be y */
  void *y;              /* [tokens, columns] */
  /* [tokens, packed ranks] T without scales, or null. */
  void *t_out;
  /* As in LoraDecode. */
  unsigned long long *ticket;
  /* [tokens, t_stride] scale * T, each segment's from its t_begin on, zeros where its rank was rounded up. */
  void *t;
  /* [row_tiles, t_tiles]: the epoch of the launch that wrote a tile of T last. */
  uint32_t *flags;
  /* [row_tiles * column_tiles, splits, tile] partial sums in the order of the accumulators, and the tiles' arrivals. */
  float *partial;
  uint32_t *arrivals;
  /* The same of T: [row_tiles * t_tiles, t_splits, tile]. */
  float *t_partial;
  uint32_t *t_arrivals;
  /* As in LoraDecode; null in the launch of dx. */
  const LoraFactors *const *slot;
  /* Of x on its way into T alone; in the launch of dx, of the sum of the segments. */
  LoraDropout dropout;
  uint32_t tokens;
  uint32_t depth;
  uint32_t columns;
  uint32_t x_stride;
  uint32_t weight_stride;
  uint32_t y_stride;
  uint32_t residual_stride;
  uint32_t t_stride;
  uint32_t t_out_stride;
  uint32_t row_tiles;
  uint32_t column_tiles;
  /* Tiles of T in a row tile; zero with no segments. */
  uint32_t t_tiles;
  /* CTAs that share a tile's depth, and the depth of each; of a tile of T as well. */
  uint32_t splits;
  uint32_t split_depth;
  uint32_t t_splits;
  uint32_t t_split_depth;
  /* Row tiles whose column tiles are taken together, so that both operands stay in L2. */
  uint32_t raster_rows;
  uint32_t activation; /* enum LoraActivation */
  uint32_t segment_count;
  uint32_t slot_begin;
  LoraSegment segments[LORA_MAX_SEGMENTS];
} LoraForward;
ABI_ASSERT(sizeof(LoraForward) == 14 * 8 + 32 + 20 * 4 + 48 * LORA_MAX_SEGMENTS, "LoraForward is shared with Rust");

/* Rows and (in chunks of 16 bytes) columns of the weight that one CTA of lora_merge takes, and its threads. */
enum {
  LORA_MERGE_ROWS = 64,
  LORA_MERGE_CHUNKS = 16,
  LORA_MERGE_THREADS = 256,
};

/* What a merge did. Floats are stored as their bits: of numbers that are not negative, these have the same order. */
typedef struct LoraMergeReport {
  uint32_t largest_rounding; /* f32: the largest |stored - exact| */
  uint32_t largest_change;   /* f32: the largest |s B A| */
  uint32_t not_finite;       /* results that are an infinity or a NaN */
} LoraMergeReport;

/* weight = source + sum of segments' scale * b a, in the weight's own layout. */
typedef struct LoraMerge {
  const void *source; /* [rows, columns]; may be the weight */
  void *weight;       /* [rows, columns] */
  LoraMergeReport *report; /* zeroed before */
  uint32_t rows;
  uint32_t columns;
  uint32_t source_stride;
  uint32_t weight_stride;
  /* Of the weight's two dimensions, `begin` and `end` of a segment count the rows in the rows kernels (W0 [out, in]), the
   * columns in the columns kernels. */
  uint32_t segment_count;
  uint32_t reserved;
  LoraSegment segments[LORA_MAX_SEGMENTS];
} LoraMerge;
ABI_ASSERT(sizeof(LoraMerge) == 3 * 8 + 6 * 4 + 48 * LORA_MAX_SEGMENTS, "LoraMerge is shared with Rust");

/* Reads `chunks` times 16 bytes; the sink is written only if all of them are zero in their lowest bit. */
typedef struct LoraRead {
  const void *from;
  uint32_t *sink;
  unsigned long long chunks;
} LoraRead;
ABI_ASSERT(sizeof(LoraRead) == 3 * 8, "LoraRead is shared with Rust");

enum {
  LORA_READ_THREADS = 512,
  /* Chunks that a thread has in flight. */
  LORA_READ_UNROLL = 8,
};

/* The driver's CUtensorMap: the shape of a tensor in global memory and of the boxes that are copied of it. */
typedef struct TensorMap {
  ABI_ALIGNED(128) unsigned long long opaque[16];
} TensorMap;
ABI_ASSERT(sizeof(TensorMap) == 128, "TensorMap is the driver's");

/* What the forward kernels take whose operands the copy engine fetches. Boxes of x are 64 values of the depth of 128 rows;
 * of the weight 64 of the depth of as many columns as a CTA fetches of a tile (rows kernels), or 64 columns of 64 of the
 * depth. Boxes of y are 64 columns of 64 rows. */
typedef struct LoraForwardTma {
  TensorMap x;
  TensorMap weight;
  TensorMap y;
  LoraForward forward;
  uint32_t y_mapped; /* whether there is a map of y, whose rows must start at multiples of 16 bytes for that */
  uint32_t reserved[7];
} LoraForwardTma;
ABI_ASSERT(sizeof(LoraForwardTma) == 11 * 128, "LoraForwardTma is shared with Rust");

enum {
  /* The gradient kernels: neighbouring columns of x or dy that one CTA takes, a thread each, ... */
  LORA_GRADIENTS_COLUMNS = 256,
  /* ... the columns of Q or T that they meet at a time, ... */
  LORA_GRADIENTS_RANKS = 64,
  /* ... the stages of its ring, and the bytes that a stage holds of each column. */
  LORA_GRADIENTS_STAGES = 3,
  LORA_GRADIENTS_STAGE_BYTES = 64,
};

/* The gradients of one low-rank term. */
typedef struct LoraGradientsSegment {
  float *da; /* [rank, d_in] */
  float *db; /* [end - begin, rank] */
  uint32_t da_stride;
  uint32_t db_stride;
  uint32_t begin;
  uint32_t end;
  uint32_t rank;
  uint32_t t_begin;      /* first of this segment's columns in Q, which has whole steps of LORA_FORWARD_RANK_STEP */
  uint32_t packed_begin; /* and in T, where no rank is rounded up */
  float scale;
} LoraGradientsSegment;
ABI_ASSERT(sizeof(LoraGradientsSegment) == 48, "LoraGradientsSegment is shared with Rust");

/* da (+)= Q^T x, db (+)= scale * dy^T T, dbias (+)= column sums of dy. The first a_panels * a_blocks * splits CTAs sum up
 * tiles of da, the next b_panels * b_blocks * splits tiles of db. */
typedef struct LoraGradients {
  const void *x;  /* [tokens, d_in] */
  const void *dy; /* [tokens, d_out] */
  const void *q;  /* [tokens, q_stride] scale * dy * b, zeros where a rank was rounded up; rows of whole 16 bytes */
  const void *t;  /* [tokens, packed ranks] x a^T with dropout, without scales */
  float *dbias;   /* [d_out], or null */
  /* [tiles, splits, tile] partial sums in the order of the accumulators, tiles of da before those of db, and the tiles'
   * arrivals; [b_panels, splits, LORA_GRADIENTS_COLUMNS] partial sums of columns of dy. */
  float *partial;
  uint32_t *arrivals;
  float *bias_partial;
  /* Of x. */
  LoraDropout dropout;
  uint32_t tokens;
  uint32_t d_in;
  uint32_t d_out;
  uint32_t x_stride;
  uint32_t dy_stride;
  uint32_t q_stride;
  uint32_t t_stride;
  /* Panels of LORA_GRADIENTS_COLUMNS columns of x, and the blocks of LORA_GRADIENTS_RANKS columns of Q that each meets. */
  uint32_t a_panels;
  uint32_t a_blocks;
  /* The same of dy and T; blocks of the panel that meets the most. */
  uint32_t b_panels;
  uint32_t b_blocks;
  /* CTAs that share a tile's tokens, and the tokens of each. */
  uint32_t splits;
  uint32_t split_tokens;
  /* Whether sums are added to what is there. */
  uint32_t accumulate;
  uint32_t segment_count;
  uint32_t reserved;
  LoraGradientsSegment segments[LORA_MAX_SEGMENTS];
} LoraGradients;
ABI_ASSERT(sizeof(LoraGradients) == 8 * 8 + 32 + 16 * 4 + 48 * LORA_MAX_SEGMENTS, "LoraGradients is shared with Rust");

enum {
  LORA_ADAMW_THREADS = 256,
  /* CTAs that an SM has room for. */
  LORA_ADAMW_CTAS = 3,
  /* A chunk's elements are a multiple of this, but for a tensor's last. */
  LORA_ADAMW_STEP = 2048,
};

/* Why a step changed nothing. */
enum {
  LORA_ADAMW_TAKEN = 0,
  LORA_ADAMW_NON_FINITE = 1,
  LORA_ADAMW_TOO_LARGE = 2,
  LORA_ADAMW_LEARNING_RATE = 3,
};

/* Some neighbouring elements of one parameter, the first of them at each address. */
typedef struct LoraAdamwChunk {
  const float *gradient;
  float *value;
  float *first_moment;
  float *second_moment;
  void *stored; /* the rounded copy, or null */
  uint32_t elements;
  uint32_t factor; /* 0: A, 1: B */
} LoraAdamwChunk;
ABI_ASSERT(sizeof(LoraAdamwChunk) == 5 * 8 + 2 * 4, "LoraAdamwChunk is shared with Rust");

/* What became of a launch. */
typedef struct LoraAdamwReport {
  double norm;
  double clipped_by;
  unsigned long long steps; /* taken so far, this one included unless it was skipped */
  uint32_t skipped;         /* LORA_ADAMW_TAKEN, or why not */
  uint32_t reserved;
} LoraAdamwReport;
ABI_ASSERT(sizeof(LoraAdamwReport) == 3 * 8 + 2 * 4, "LoraAdamwReport is shared with Rust");

/* What launches leave for each other. Zero at first, but for the steps taken before: those of the first report. */
typedef struct LoraAdamwState {
  unsigned long long ticket;  /* as in LoraDecode */
  unsigned long long verdict; /* f32 that gradients are multiplied by, or NaN, in the lower half; its epoch in the upper */
  uint32_t arrivals;
  uint32_t reserved;
  LoraAdamwReport reports[2]; /* of the launches with an even epoch and with an odd one */
} LoraAdamwState;
ABI_ASSERT(sizeof(LoraAdamwState) == 3 * 8 + 2 * 32, "LoraAdamwState is shared with Rust");

/* One step of AdamW on all chunks. */
typedef struct LoraAdamw {
  const LoraAdamwChunk *chunks;
  LoraAdamwState *state;
  double *partial;       /* [chunk_count] sums of squares */
  const float *lr_scale; /* multiplies the learning rates, or null */
  double rates[2];       /* learning rates of A and B */
  double weight_decay;
  double betas[2];
  double max_norm; /* infinity: nothing is clipped */
  double norm_epsilon;
  float eps;
  uint32_t chunk_count;
} LoraAdamw;
ABI_ASSERT(sizeof(LoraAdamw) == 4 * 8 + 7 * 8 + 2 * 4, "LoraAdamw is shared with Rust");

enum {
  /* The kernels whose warps hold rows, LoraLayerNorm's and LoraEmbedding's: threads of a CTA at most, ... */
  LORA_ROW_THREADS = 256,
  /* ... and elements of a row that a thread holds at a time. */
  LORA_ROW_ELEMENTS = 32,
};

/* y = (x - mean) / sqrt(variance + epsilon) * weight + bias, row by row. */
typedef struct LoraLayerNorm {
  const void *x; /* [rows, width] */
  const float *weight; /* [width] */
  const float *bias;   /* [width] */
  void *y; /* [rows, width] */
  uint32_t rows;
  uint32_t width;
  uint32_t x_stride;
  uint32_t y_stride;
  /* Threads that share a row, whole warps: their logarithm. */
  uint32_t row_threads_log2;
  float epsilon;
} LoraLayerNorm;
ABI_ASSERT(sizeof(LoraLayerNorm) == 4 * 8 + 6 * 4, "LoraLayerNorm is shared with Rust");

/* x = the ids' rows of tokens, or, behind those, of extra, + the places' rows of positions; y = LayerNorm of x. */
typedef struct LoraEmbedding {
  const void *tokens;     /* [vocabulary, width] */
  const void *extra;      /* [extra_rows, width] */
  const void *positions;  /* [position_rows, width] */
  const uint32_t *ids;    /* [rows] */
  const uint32_t *places; /* [rows] */
  void *x;                /* [rows, width] */
  const float *weight;    /* [width] */
  const float *bias;      /* [width] */
  void *y;                /* [rows, width], or null: then there are no weight and no bias */
  uint32_t rows;
  uint32_t width;
  uint32_t vocabulary;
  uint32_t extra_rows;
  uint32_t position_rows;
  uint32_t tokens_stride;
  uint32_t extra_stride;
  uint32_t positions_stride;
  uint32_t x_stride;
  uint32_t y_stride;
  /* Threads that share a row, whole warps: their logarithm. */
  uint32_t row_threads_log2;
  float epsilon;
} LoraEmbedding;
ABI_ASSERT(sizeof(LoraEmbedding) == 9 * 8 + 12 * 4, "LoraEmbedding is shared with Rust");

/* y = up(act(down x + hidden_bias)) + bias (+ x) + residual: a forward launch without W0, whose weight is null and whose
 * split_depth is 0. Its one segment is a = down, b = up, of all columns; T is what is hidden. */
typedef struct LoraAdapter {
  LoraForward forward; /* activation: LORA_IDENTITY */
  const void *hidden_bias; /* [rank of the segment], or null */
  uint32_t hidden_activation; /* enum LoraActivation */
  uint32_t adds_input;
} LoraAdapter;
ABI_ASSERT(sizeof(LoraAdapter) == 992 + 8 + 2 * 4, "LoraAdapter is shared with Rust");

enum {
  /* Threads of an attention CTA, and the largest head. */
  LORA_ATTENTION_THREADS = 128,
  LORA_ATTENTION_MAX_HEAD = 128,
  /* Keys of a stage on matrix instructions; the stages of both prefill kernels, each keys and values. */
  LORA_ATTENTION_MMA_KEYS = 64,
  LORA_ATTENTION_STAGES = 2,
  /* Floats behind a sum of values: the largest score, the sum of weights, and what makes whole chunks of it. */
  LORA_ATTENTION_STATS = 4,
};

/* out = softmax(scale * q k^T) v, head by head, over the keys of a memory and the call's own up to the query. */
typedef struct LoraAttention {
  const void *qkv; /* [sequences * tokens, 3 * heads * head_size]: q | k | v */
  void *out;       /* [sequences * tokens, heads * head_size] */
  /* Of a prefix [capacity, heads * head_size], of a cache [sequences * capacity, heads * head_size], else null. */
  void *keys;
  void *values;
  const uint32_t *lengths; /* [sequences] filled rows of a cache; null: of `capacity` rows all */
  /* [sequences * heads, splits, padded head + LORA_ATTENTION_STATS] sums of a split's keys, and [sequences * heads]
   * arrivals, where several CTAs share the keys of a decode. */
  float *partial;
  uint32_t *arrivals;
  uint32_t tokens; /* of a sequence */
  uint32_t heads;
  uint32_t head_size;
  uint32_t capacity; /* rows of the prefix, or of each sequence in the cache; 0 without memory */
  uint32_t qkv_stride;
  uint32_t out_stride;
  uint32_t keys_stride;
  uint32_t values_stride;
  /* Keys that one CTA of a decode takes, and how many such there are at most. */
  uint32_t split_keys;
  uint32_t splits;
  float scale; /* times log2(e): exponents are of 2 */
  uint32_t reserved;
} LoraAttention;
ABI_ASSERT(sizeof(LoraAttention) == 7 * 8 + 12 * 4, "LoraAttention is shared with Rust");

enum { LORA_POINTWISE_THREADS = 128 };

/* y = activation(y + scale * added). */
typedef struct LoraPointwise {
  void *y;           /* [rows, columns] */
  const void *added; /* [rows, columns], or null */
  uint32_t rows;
  uint32_t columns;
  uint32_t y_stride;
  uint32_t added_stride;
  uint32_t activation; /* enum LoraActivation */
  float scale;
  /* CTAs that share a row. */
  uint32_t row_ctas;
  uint32_t reserved;
} LoraPointwise;
ABI_ASSERT(sizeof(LoraPointwise) == 2 * 8 + 8 * 4, "LoraPointwise is shared with Rust");

/* What the kernels of kernels/test get: each says what it takes these for. */
typedef struct LoraTest {
  TensorMap maps[2];
  const void *in[4];
  void *out[4];
  uint32_t n[16];
} LoraTest;
ABI_ASSERT(sizeof(LoraTest) == 2 * 128 + 8 * 8 + 16 * 4, "LoraTest is shared with Rust");
