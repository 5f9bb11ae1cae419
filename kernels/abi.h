/* What the kernels and the Rust layer share: launch parameters and constants, in plain C.
 *
 * Every kernel takes one of these structs by value. src/abi.rs is made from this header by `cargo xtask bindings`.
 * Pointers are device addresses. Strides count elements between rows. `depth` is K, the dimension that a product sums over.
 * Every index fits 32 bits unless it is a product of two dimensions; the Rust layer checks this before a launch. */
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
  /* Low-rank segments of one layer, at most. */
  LORA_MAX_SEGMENTS = 16,
  /* The largest rank of one segment. */
  LORA_MAX_RANK = 512,
  /* Tokens of one launch of a decode kernel, at most. */
  LORA_DECODE_MAX_TOKENS = 16,
  /* Rows of A that one ticket of a decode kernel stands for, at most. */
  LORA_SHRINK_ROWS = 4,
  /* In the T of the forward kernels each segment's rank is rounded up to a multiple of this. */
  LORA_FORWARD_RANK_STEP = 16,
  /* Columns of a T tile; its rows are those of a y tile. */
  LORA_FORWARD_T_COLUMNS = 64,
};

/* The activation of an output, applied before the residual is added: values of fields called `activation`. */
enum {
  LORA_IDENTITY = 0,
  LORA_RELU = 1,
  /* 0.5x(1 + tanh(sqrt(2/pi)(x + 0.044715x^3))) */
  LORA_GELU_NEW = 2,
};

/* The factors of one low-rank term, scale * b a. */
typedef struct LoraFactors {
  const void *a; /* [rank, depth]; in dx [rank, columns] */
  const void *b; /* [columns of the segment, rank] */
  uint32_t a_stride;
  uint32_t b_stride;
  uint32_t rank;
  float scale;
} LoraFactors;
ABI_ASSERT(sizeof(LoraFactors) == 32, "LoraFactors is shared with Rust");

/* One low-rank term: y[:, begin..end] += scale * (x a^T) b^T. In dx, where x is dy and y is dx, begin and end are positions
 * along K: y += mask/(1 - p) (scale * x[:, begin..end] b) a. */
typedef struct LoraSegment {
  LoraFactors factors;
  uint32_t begin;
  uint32_t end;
  /* This segment's first column in T = [x a_0^T, x a_1^T, ...]. In the workspace of the forward kernels each rank is rounded
   * up to a multiple of LORA_FORWARD_RANK_STEP. */
  uint32_t t_begin;
  /* This segment's first column in the T that the caller asked for, where no rank is rounded up. */
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
  /* Upper half: the epoch of the launch before. Lower half: the next ticket. Zero in a fresh workspace; every launch
   * leaves it ready for the next. */
  unsigned long long *ticket;
  /* [tokens, total_rank] words: the lower half is a value of T in f32, the upper half the epoch of the launch that stored
   * it, so that readers can poll the word. */
  unsigned long long *t;
  /* Where K is split: [tiles, splits, tile tokens, tile columns] partial sums, and for each tile the number of CTAs that
   * have stored theirs. */
  float *partial;
  uint32_t *arrivals;
  /* A word in device memory with the address of the table of factors to run with, in which this layer's entries start at
   * slot_begin. No rank in the table is higher than in `segments`. A captured graph runs with another adapter once the word
   * holds another address. Null: the launch uses the factors in `segments`. */
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
  /* On CUDA cores: threads that share a row of the weight (columns kernels: a run of a row), a power of two. With MMA:
   * threads of the warps that store their sums in shared memory at the same time. */
  uint32_t row_threads;
  /* Split-K: CTAs that share a tile, and the K of each. */
  uint32_t splits;
  uint32_t split_depth;
  /* Rows of A that one ticket stands for. */
  uint32_t shrink_rows;
  /* The largest rank of a segment, rounded up to whole chunks of 16 bytes: the row stride of T in shared memory. */
  uint32_t widest_rank;
  uint32_t activation; /* LORA_IDENTITY, LORA_RELU or LORA_GELU_NEW */
  uint32_t segment_count;
  uint32_t slot_begin;
  /* Floats from one token's sums to the next in shared memory. A warp stores 8 columns of 4 tokens at a time, or 4 columns of
   * 8 tokens, without bank conflicts. */
  uint32_t sums_stride;
  LoraSegment segments[LORA_MAX_SEGMENTS];
} LoraDecode;
ABI_ASSERT(sizeof(LoraDecode) == 10 * 8 + 18 * 4 + 48 * LORA_MAX_SEGMENTS, "LoraDecode is shared with Rust");

/* Which elements of an adapter's input are dropped: tile/dropout.h. */
typedef struct LoraDropout {
  const uint32_t *step; /* null, or added to the offset, so that replays of a captured graph differ */
  uint32_t seed_low;
  uint32_t seed_high;
  uint32_t layer;
  uint32_t offset;
  uint32_t threshold; /* an element is dropped if its 16 random bits are less; 0: no dropout */
  float scale;        /* 65536 / (65536 - threshold) */
} LoraDropout;
ABI_ASSERT(sizeof(LoraDropout) == 8 + 6 * 4, "LoraDropout is shared with Rust");

/* y = activation(x W0^T + bias + sum of segments) + residual for any number of tokens. The first row_tiles * t_tiles *
 * t_splits tasks of the launch are T tiles, the others y tiles.
 *
 * The kernels of dx = dy W0 + segments + residual take the same struct: x is dy, depth is the layer's outputs, y is dx,
 * columns is the layer's inputs, T is Q. Then t_out is null, and column_tiles is 0 if the caller does not want dx. */
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
  /* [tokens, t_stride] scale * T. Each segment's columns start at its t_begin; those that round its rank up are zero. */
  void *t;
  /* [row_tiles, t_tiles]: for each T tile the epoch of the launch that stored it last. */
  uint32_t *flags;
  /* Split-K of y: [row_tiles * column_tiles, splits, tile] partial sums in the order of the accumulators, and for each tile
   * the number of CTAs that have stored theirs. */
  float *partial;
  uint32_t *arrivals;
  /* Split-K of T: the same, [row_tiles * t_tiles, t_splits, tile]. */
  float *t_partial;
  uint32_t *t_arrivals;
  /* As in LoraDecode; null in the launch of dx. */
  const LoraFactors *const *slot;
  /* Dropout of x where T is computed, but not where x W0^T is; in dx, of the sum of the segments. */
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
  /* T tiles of a row tile; 0 without segments. */
  uint32_t t_tiles;
  /* Split-K: CTAs that share a y tile and the K of each; then the same for a T tile. */
  uint32_t splits;
  uint32_t split_depth;
  uint32_t t_splits;
  uint32_t t_split_depth;
  /* Row tiles of a group. The y tiles of a group have consecutive task numbers, so that both operands stay in L2. */
  uint32_t raster_rows;
  uint32_t activation; /* LORA_IDENTITY, LORA_RELU or LORA_GELU_NEW */
  uint32_t segment_count;
  uint32_t slot_begin;
  LoraSegment segments[LORA_MAX_SEGMENTS];
} LoraForward;
ABI_ASSERT(sizeof(LoraForward) == 14 * 8 + 32 + 20 * 4 + 48 * LORA_MAX_SEGMENTS, "LoraForward is shared with Rust");

/* The tile of the weight that one CTA of lora_merge owns, in rows and in columns of chunks of 16 bytes, and the CTA's
 * threads. */
enum {
  LORA_MERGE_ROWS = 64,
  LORA_MERGE_CHUNKS = 16,
  LORA_MERGE_THREADS = 256,
};

/* What a merge did. Floats are stored as their bits: for non-negative floats, the larger float has the larger bits. */
typedef struct LoraMergeReport {
  uint32_t largest_rounding; /* f32: the largest |stored - exact| */
  uint32_t largest_change;   /* f32: the largest |s B A| */
  uint32_t not_finite;       /* results that are an infinity or a NaN */
} LoraMergeReport;

/* weight = source + sum of segments' scale * b a, in the weight's own layout. */
typedef struct LoraMerge {
  const void *source; /* [rows, columns]; may be the weight */
  void *weight;       /* [rows, columns] */
  LoraMergeReport *report; /* the caller zeroes it */
  uint32_t rows;
  uint32_t columns;
  uint32_t source_stride;
  uint32_t weight_stride;
  /* `begin` and `end` of a segment are rows of the weight in the rows kernels (W0 [out, in]), columns in the columns
   * kernels. */
  uint32_t segment_count;
  uint32_t reserved;
  LoraSegment segments[LORA_MAX_SEGMENTS];
} LoraMerge;
ABI_ASSERT(sizeof(LoraMerge) == 3 * 8 + 6 * 4 + 48 * LORA_MAX_SEGMENTS, "LoraMerge is shared with Rust");

/* Reads `chunks` chunks of 16 bytes. A thread writes the sink only if the lowest bit of every word that it has read is 0. */
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

/* The driver's CUtensorMap: the shape of a tensor in global memory and of the boxes that TMA copies. */
typedef struct TensorMap {
  ABI_ALIGNED(128) unsigned long long opaque[16];
} TensorMap;
ABI_ASSERT(sizeof(TensorMap) == 128, "TensorMap is the driver's");

/* Parameters of the wgmma kernels, whose operands come by TMA. A box of x is the rows of a tile (64 in the m64* kernels,
 * else 128) by 64 values of K. A box of the weight is the columns of a tile that one CTA fetches by 64 values of K (rows
 * kernels), or 64 values of K by 64 columns (columns kernels). A box of y is 64 rows by 64 columns. */
typedef struct LoraForwardTma {
  TensorMap x;
  TensorMap weight;
  TensorMap y;
  LoraForward forward;
  uint32_t y_mapped; /* whether `y` is set, which needs rows of y that start at multiples of 16 bytes */
  uint32_t reserved[7];
} LoraForwardTma;
ABI_ASSERT(sizeof(LoraForwardTma) == 11 * 128, "LoraForwardTma is shared with Rust");

enum {
  /* Gradient kernels: columns of x or dy that one CTA owns, and its threads. */
  LORA_GRADIENTS_COLUMNS = 256,
  /* Gradient kernels: columns of Q or T that one CTA owns. */
  LORA_GRADIENTS_RANKS = 64,
  /* Gradient kernels: stages of the ring, and bytes of each column in a stage. */
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
  uint32_t t_begin;      /* this segment's first column in Q, where ranks are rounded up to LORA_FORWARD_RANK_STEP */
  uint32_t packed_begin; /* this segment's first column in T, where no rank is rounded up */
  float scale;
} LoraGradientsSegment;
ABI_ASSERT(sizeof(LoraGradientsSegment) == 48, "LoraGradientsSegment is shared with Rust");

/* da (+)= Q^T x, db (+)= scale * dy^T T, dbias (+)= column sums of dy. The first a_panels * a_blocks * splits CTAs compute
 * tiles of da, the next b_panels * b_blocks * splits CTAs tiles of db. */
typedef struct LoraGradients {
  const void *x;  /* [tokens, d_in] */
  const void *dy; /* [tokens, d_out] */
  const void *q;  /* [tokens, q_stride] scale * dy * b, zeros where a rank was rounded up; rows are whole 16-byte chunks */
  const void *t;  /* [tokens, packed ranks] x a^T with dropout, without scales */
  float *dbias;   /* [d_out], or null */
  /* Where tokens are split: [tiles, splits, tile] partial sums in the order of the accumulators, tiles of da before tiles of
   * db; for each tile the number of CTAs that have stored theirs; [b_panels, splits, LORA_GRADIENTS_COLUMNS] partial sums of
   * columns of dy. */
  float *partial;
  uint32_t *arrivals;
  float *bias_partial;
  /* Dropout of x, as in the forward pass. */
  LoraDropout dropout;
  uint32_t tokens;
  uint32_t d_in;
  uint32_t d_out;
  uint32_t x_stride;
  uint32_t dy_stride;
  uint32_t q_stride;
  uint32_t t_stride;
  /* Panels of LORA_GRADIENTS_COLUMNS columns of x, and the blocks of LORA_GRADIENTS_RANKS columns of Q that each is
   * multiplied with. */
  uint32_t a_panels;
  uint32_t a_blocks;
  /* The same for dy and T; b_blocks is the number of blocks of the panel that has the most. */
  uint32_t b_panels;
  uint32_t b_blocks;
  /* CTAs that share a tile's tokens, and the tokens of each. */
  uint32_t splits;
  uint32_t split_tokens;
  /* Whether the gradients are added to the values in memory. */
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
  /* The elements of a chunk are a multiple of this, except in a tensor's last chunk. */
  LORA_ADAMW_STEP = 2048,
};

/* Whether a step was taken, or why not. */
enum {
  LORA_ADAMW_TAKEN = 0,
  LORA_ADAMW_NON_FINITE = 1,
  LORA_ADAMW_TOO_LARGE = 2,
  LORA_ADAMW_LEARNING_RATE = 3,
};

/* Consecutive elements of one parameter. Each pointer is the address of the chunk's first element. */
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

/* The result of a launch. */
typedef struct LoraAdamwReport {
  double norm;
  double clipped_by;
  unsigned long long steps; /* steps taken so far, including this one unless it was skipped */
  uint32_t skipped;         /* LORA_ADAMW_TAKEN, or why not */
  uint32_t reserved;
} LoraAdamwReport;
ABI_ASSERT(sizeof(LoraAdamwReport) == 3 * 8 + 2 * 4, "LoraAdamwReport is shared with Rust");

/* State that one launch leaves for the next. Zero at first, except reports[0].steps, the number of steps taken before. */
typedef struct LoraAdamwState {
  unsigned long long ticket;  /* as in LoraDecode */
  unsigned long long decision; /* lower half: f32 that gradients are multiplied by, or NaN; upper half: the epoch */
  uint32_t arrivals;
  uint32_t reserved;
  LoraAdamwReport reports[2]; /* of the last launch with an even epoch and of the last with an odd one */
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
  /* LayerNorm and embedding kernels: threads of a CTA, at most. */
  LORA_ROW_THREADS = 256,
  /* LayerNorm and embedding kernels: elements of a row that a thread holds at a time. */
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
  /* Base-2 logarithm of the number of threads that share a row; they are whole warps. */
  uint32_t row_threads_log2;
  float epsilon;
} LoraLayerNorm;
ABI_ASSERT(sizeof(LoraLayerNorm) == 4 * 8 + 6 * 4, "LoraLayerNorm is shared with Rust");

/* x = tokens[id] + positions[place], y = LayerNorm(x). Ids from `vocabulary` on are rows of extra. */
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
  /* Base-2 logarithm of the number of threads that share a row; they are whole warps. */
  uint32_t row_threads_log2;
  float epsilon;
} LoraEmbedding;
ABI_ASSERT(sizeof(LoraEmbedding) == 9 * 8 + 12 * 4, "LoraEmbedding is shared with Rust");

/* y = up(act(down x + hidden_bias)) + bias (+ x) + residual: a forward launch without W0, so weight is null and split_depth
 * is 0. Its one segment has a = down, b = up and all columns; T is the hidden activation. */
typedef struct LoraAdapter {
  LoraForward forward; /* activation: LORA_IDENTITY */
  const void *hidden_bias; /* [rank of the segment], or null */
  uint32_t hidden_activation; /* LORA_IDENTITY, LORA_RELU or LORA_GELU_NEW */
  uint32_t adds_input;
} LoraAdapter;
ABI_ASSERT(sizeof(LoraAdapter) == 992 + 8 + 2 * 4, "LoraAdapter is shared with Rust");

enum {
  /* Threads of an attention CTA, and the largest head size. */
  LORA_ATTENTION_THREADS = 128,
  LORA_ATTENTION_MAX_HEAD = 128,
  /* Keys of a stage of the prefill kernels with MMA; stages of all prefill kernels, each of keys and values. */
  LORA_ATTENTION_MMA_KEYS = 64,
  LORA_ATTENTION_STAGES = 2,
  /* Floats of a record after the sums of values: the largest score, the sum of weights, and padding to whole chunks. */
  LORA_ATTENTION_STATS = 4,
};

/* out = softmax(scale * q k^T) v for every head, over the keys of the memory (a prefix or a cache) and the call's own keys
 * up to the query. */
typedef struct LoraAttention {
  const void *qkv; /* [sequences * tokens, 3 * heads * head_size]: q | k | v */
  void *out;       /* [sequences * tokens, heads * head_size] */
  /* The memory: a prefix [capacity, heads * head_size], a cache [sequences * capacity, heads * head_size], or null. */
  void *keys;
  void *values;
  const uint32_t *lengths; /* [sequences] filled rows of a cache; null: all `capacity` rows are filled */
  /* Decode with splits: [sequences * heads, splits, padded head + LORA_ATTENTION_STATS] records of the splits, and for each
   * head of a sequence the number of CTAs that have stored theirs. */
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
  /* Decode: keys of one split, which is one CTA, and splits of a full memory. */
  uint32_t split_keys;
  uint32_t splits;
  float scale; /* includes a factor of log2(e), since weights are powers of 2 */
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
  uint32_t activation; /* LORA_IDENTITY, LORA_RELU or LORA_GELU_NEW */
  float scale;
  /* CTAs that share a row. */
  uint32_t row_ctas;
  uint32_t reserved;
} LoraPointwise;
ABI_ASSERT(sizeof(LoraPointwise) == 2 * 8 + 8 * 4, "LoraPointwise is shared with Rust");

enum {
  /* Threads of a CTA of the kernels in kernels/ladder. */
  LORA_LADDER_THREADS = 256,
  /* Tokens of one launch of steps 2 to 4, at most. */
  LORA_LADDER_TOKENS = 4,
  /* Stages of the ring of step 4. */
  LORA_LADDER_STAGES = 8,
};

/* y = x weight^T + scale * (x a^T) b^T in f32: parameters of the kernels in kernels/ladder. */
typedef struct LoraLadder {
  const float *x;      /* [tokens, depth] */
  const float *weight; /* [columns, depth]; step 4: rows start at multiples of 16 bytes */
  const float *a;      /* [rank, depth] */
  const float *b;      /* [columns, rank] */
  float *y;            /* [tokens, columns] */
  float *t;            /* [tokens, rank]. Step 1: T = x a^T; steps 3 and 4: scale * T; step 2 does not use it */
  /* Steps 3 and 4: the ticket counter, as in LoraDecode, and for each ticket the epoch of the launch that stored its part of
   * T last. Zeros in a fresh workspace. */
  unsigned long long *ticket;
  uint32_t *flags;
  uint32_t tokens;
  uint32_t depth;
  uint32_t columns;
  uint32_t rank;
  uint32_t x_stride;
  uint32_t weight_stride;
  uint32_t a_stride;
  uint32_t b_stride;
  uint32_t y_stride;
  float scale;
} LoraLadder;
ABI_ASSERT(sizeof(LoraLadder) == 8 * 8 + 10 * 4, "LoraLadder is shared with Rust");

/* Parameters of the kernels in kernels/test; the comment at each kernel says how it uses them. */
typedef struct LoraTest {
  TensorMap maps[2];
  const void *in[4];
  void *out[4];
  uint32_t n[16];
} LoraTest;
ABI_ASSERT(sizeof(LoraTest) == 2 * 128 + 8 * 8 + 16 * 4, "LoraTest is shared with Rust");
