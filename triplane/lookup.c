/* Occupancy logits and colors at points of a field on tri-planes, and the gradients for planes and decoder.
 *
 * Layout: planes (latent, y, x, plane, channel). A texel's channels fill one or two cache lines, and a channels-last convolution
 * writes this layout directly. XY, XZ, YZ: plane p is indexed by the axes FIRST[p] (x of the plane) and SECOND[p] (y).
 * Points are processed in blocks of as many as a vector of the processor has lanes. Lookups hold a point's channels in vectors.
 * Then the block is transposed, and the decoder holds the points in a vector and broadcasts its weights. Nothing is saved between
 * forward and backward: looking up features again is cheaper than reading them from memory. In the backward pass each latent
 * belongs to one thread, so sums do not depend on the number of threads, and points whose gradients are negligible are left out:
 * many samples lie in free space or behind the surface. The formulas are in plain_lookup.py. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define BLOCK 16 /* points, and lanes of a vector. Compilers shuffle vectors wider than the processor's lane by lane. */
#define ROUNDS 4 /* log2(BLOCK) */
#elif defined(__AVX__)
#define BLOCK 8
#define ROUNDS 3
#else
#define BLOCK 4
#define ROUNDS 2
#endif
#define PLANES 3
#define OUTPUTS 4 /* logit, red, green, blue */
#define LEAK 0.2f
#define MAX_HIDDEN 128
#define NEGLIGIBLE 1e-10f /* relative to the largest gradient of a latent */
#define MAX_VECTORS (32 / BLOCK) /* that hold a point's channels */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * BLOCK)));
typedef float unaligned_floats __attribute__((vector_size(4 * BLOCK), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * BLOCK)));

typedef struct {
  const float *points;  /* (latents, points, 3), world */
  const float *planes;  /* (latents, size, size, 3, channels) */
  const float *frame;   /* 3 x 3 world to plane coordinates in [-1, 1]; then of the ball:
                           1 / semi-axes (3) in plane coordinates, logit at the center before the clamp, limit */
  const float *hidden_weight, *hidden_bias, *output_weight, *output_bias; /* (H, C), (H,), (4, H), (4,) */
  long num_latents, num_points, size, channels, hidden, is_product;
} Field;

typedef struct {
  long offset[PLANES][BLOCK];      /* of the lower corner's texel, in floats */
  float weight[PLANES][4][BLOCK];  /* of the four texels: (y, x) = 00, 01, 10, 11 */
  floats ball;                     /* the ball's logit */
} Cells;

static const int FIRST[PLANES] = {0, 0, 1}, SECOND[PLANES] = {1, 2, 2};

INLINE floats positive(floats x) { return (floats)((ints)x & (ints)(x > 0.0f)); }

/* A leaky ReLU whose corner is rounded by a parabola over [-1, 1]; *slope is its derivative. */
INLINE floats activation(floats x, floats *slope) {
  floats above = positive(x - 1.0f), bend = positive(x + 1.0f) - above;
  *slope = LEAK + (0.5f - 0.5f * LEAK) * bend;
  return LEAK * x + (1 - LEAK) * (0.25f * bend * bend + above);
}

/* exp(x), x clamped to [-87, 87]: reduced by multiples of ln 2, in two parts, then a polynomial of degree 6. */
INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  float k = rintf(x * 1.44269504088896341f);
  float r = fmaf(k, -0.693145751953125f, x);
  r = fmaf(k, -1.42860682030941723e-6f, r);
  float p = 1.3888888888e-3f;
  p = fmaf(p, r, 8.3333333333e-3f);
  p = fmaf(p, r, 4.1666666666e-2f);
  p = fmaf(p, r, 1.6666666666e-1f);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  uint32_t bits = (uint32_t)((int32_t)k + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return p * scale;
}

INLINE float clamp(float x, float low, float high) {
  x = x > low ? x : low; /* NaN becomes low */
  return x < high ? x : high;
}

/* Find the texels, their weights and the ball's logits of a block of points (BLOCK, 3). */
INLINE void find_cells(const Field *f, const float *points, Cells *cells) {
  const float *m = f->frame, *per_axis = m + 9, center = m[12], limit = m[13], last = (float)(f->size - 1);
  long stride = PLANES * f->channels, size = f->size;
  float fraction[3][BLOCK], ball[BLOCK];
  int32_t index[3][BLOCK];
#pragma omp simd
  for (int p = 0; p < BLOCK; p++) {
    float x = points[3 * p], y = points[3 * p + 1], z = points[3 * p + 2];
    float squared = 0; /* squared distance from the center, in semi-axes: 1 on the ball's surface */
    for (int axis = 0; axis < 3; axis++) {
      float u = m[3 * axis] * x + m[3 * axis + 1] * y + m[3 * axis + 2] * z;
      squared += (u * per_axis[axis]) * (u * per_axis[axis]);
      u = clamp((u + 1) * 0.5f * last, 0, last);
      float low = clamp(floorf(u), 0, last - 1);
      index[axis][p] = (int32_t)low;
      fraction[axis][p] = u - low;
    }
    ball[p] = clamp(center * (1 - sqrtf(squared)), -limit, limit);
  }
  for (int p = 0; p < BLOCK; p++) cells->ball[p] = ball[p];
  for (int plane = 0; plane < PLANES; plane++) {
    const int first = FIRST[plane], second = SECOND[plane];
#pragma omp simd
    for (int p = 0; p < BLOCK; p++) {
      float u = fraction[first][p], v = fraction[second][p];
      cells->offset[plane][p] = (index[second][p] * size + index[first][p]) * stride + plane * f->channels;
      cells->weight[plane][0][p] = (1 - v) * (1 - u);
      cells->weight[plane][1][p] = (1 - v) * u;
      cells->weight[plane][2][p] = v * (1 - u);
      cells->weight[plane][3][p] = v * u;
    }
  }
}

INLINE floats load(const float *at) { return *(const unaligned_floats *)at; }

INLINE floats bilinear(const Field *f, const float *planes, const Cells *cells, int plane, int p, int vector) {
  const float *texel = planes + cells->offset[plane][p] + BLOCK * vector;
  long right = PLANES * f->channels, down = right * f->size;
  const float(*weight)[BLOCK] = cells->weight[plane];
  return weight[0][p] * load(texel) + weight[1][p] * load(texel + right) + weight[2][p] * load(texel + down) +
         weight[3][p] * load(texel + down + right);
}

/* features[p][vector]: the sum of the planes' values, or prod(1 + value) - 1. */
INLINE void look_up(const Field *f, const float *planes, const Cells *cells, int vectors, int is_product,
                    floats features[BLOCK][MAX_VECTORS]) {
  for (int p = 0; p < BLOCK; p++)
    for (int v = 0; v < vectors; v++) {
      floats a = bilinear(f, planes, cells, 0, p, v), b = bilinear(f, planes, cells, 1, p, v),
             c = bilinear(f, planes, cells, 2, p, v);
      features[p][v] = is_product ? (1.0f + a) * (1.0f + b) * (1.0f + c) - 1.0f : a + b + c;
    }
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

/* Interleave the lower halves of a and b, and the upper halves. */
#if BLOCK == 16
#define LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif BLOCK == 8
#define LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif

/* Transpose a square of values in perfect shuffles: features[p][vector] (rows) -> columns[c], channel c of all points. */
INLINE void transpose(floats features[BLOCK][MAX_VECTORS], int vector, floats columns[BLOCK]) {
  floats rows[BLOCK];
  for (int i = 0; i < BLOCK; i++) columns[i] = features[i][vector];
  for (int round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < BLOCK; i++) rows[i] = columns[i];
    for (int i = 0; i < BLOCK / 2; i++) {
      columns[2 * i] = LOW(rows[i], rows[i + BLOCK / 2]);
      columns[2 * i + 1] = HIGH(rows[i], rows[i + BLOCK / 2]);
    }
  }
}

/* Return a block of points, padded with zeros after the last. */
INLINE const float *block_points(const Field *f, long latent, long start, float padded[3 * BLOCK]) {
  const float *points = f->points + 3 * (latent * f->num_points + start);
  long left = f->num_points - start;
  if (left >= BLOCK) return points;
  memset(padded, 0, sizeof(float) * 3 * BLOCK);
  memcpy(padded, points, sizeof(float) * 3 * left);
  return padded;
}

/* Compute `num` hidden units from j on, before the activation. Independent sums keep the adders busy. */
INLINE void hidden_units(const Field *f, const floats *columns, int channels, long j, int num, floats *h) {
  const float *w = f->hidden_weight + j * channels;
  for (int q = 0; q < num; q++) h[q] = f->hidden_bias[j + q] + (floats){0};
#pragma GCC unroll 4
  for (int c = 0; c < channels; c++)
    for (int q = 0; q < num; q++) h[q] += w[q * channels + c] * columns[c];
}

INLINE void add_to_outputs(const Field *f, const floats *columns, int channels, long j, int num, int outputs, floats *out) {
  floats h[8], unused;
  hidden_units(f, columns, channels, j, num, h);
  for (int q = 0; q < num; q++) {
    floats active = activation(h[q], &unused);
    for (int k = 0; k < outputs; k++) out[k] += f->output_weight[k * f->hidden + j + q] * active;
  }
}

INLINE void forward_block(const Field *f, long latent, long start, int vectors, int is_product, float *logits, float *colors) {
  const int outputs = colors ? OUTPUTS : 1, channels = BLOCK * vectors;
  float padded[3 * BLOCK], pixels[OUTPUTS - 1][BLOCK];
  Cells cells;
  floats features[BLOCK][MAX_VECTORS], columns[BLOCK * MAX_VECTORS], out[OUTPUTS];
  find_cells(f, block_points(f, latent, start, padded), &cells);
  look_up(f, f->planes + latent * f->size * f->size * PLANES * channels, &cells, vectors, is_product, features);
  for (int v = 0; v < vectors; v++) transpose(features, v, columns + BLOCK * v);
  for (int k = 0; k < outputs; k++) out[k] = f->output_bias[k] + (floats){0};
  long j = 0;
  for (; j + 8 <= f->hidden; j += 8) add_to_outputs(f, columns, channels, j, 8, outputs, out);
  for (; j < f->hidden; j += 4) add_to_outputs(f, columns, channels, j, 4, outputs, out);
  out[0] += cells.ball;
  long num = f->num_points - start < BLOCK ? f->num_points - start : BLOCK, place = latent * f->num_points + start;
  for (long p = 0; p < num; p++) logits[place + p] = out[0][p];
  if (!colors) return;
  for (int k = 0; k < 3; k++)
#pragma omp simd
    for (int p = 0; p < BLOCK; p++) pixels[k][p] = 1 / (1 + exponential(-((const float *)&out[k + 1])[p]));
  for (long p = 0; p < num; p++)
    for (int k = 0; k < 3; k++) colors[3 * (place + p) + k] = pixels[k][p];
}

INLINE void forward(const Field *f, int vectors, int is_product, float *logits, float *colors) {
  long blocks = (f->num_points + BLOCK - 1) / BLOCK, all = blocks * f->num_latents;
#pragma omp parallel for schedule(static) if (all > 64)
  for (long i = 0; i < all; i++)
    forward_block(f, i / blocks, i % blocks * BLOCK, vectors, is_product, logits, colors);
}

/* logits (latents, points); colors (latents, points, 3), or NULL to skip them. */
void gof_triplane_forward(const Field *f, float *logits, float *colors) {
  if (f->channels == 16 && !f->is_product) {
    if (colors) forward(f, 16 / BLOCK, 0, logits, colors);
    else forward(f, 16 / BLOCK, 0, logits, NULL);
  } else if (f->channels == 16) forward(f, 16 / BLOCK, 1, logits, colors);
  else if (!f->is_product) forward(f, 32 / BLOCK, 0, logits, colors);
  else forward(f, 32 / BLOCK, 1, logits, colors);
}

/* Gradients of the decoder for one latent, summed over points, with one partial sum per lane. */
typedef struct {
  floats hidden_bias[MAX_HIDDEN], output_weight[OUTPUTS][MAX_HIDDEN], output_bias[OUTPUTS];
} Sums;

/* Inputs of the backward pass, as in gof_triplane_backward. */
typedef struct {
  const float *colors, *grad_logits, *grad_colors;
} Gradients;

/* Points that the backward pass processes together, and the gradients of their outputs before the sigmoid. */
typedef struct {
  float points[3 * BLOCK];
  floats out[OUTPUTS];
  int num;
} Batch;

/* Return the sum of the absolute gradients of a point's outputs. */
INLINE float gradient_size(const Gradients *g, long place) {
  float size = g->grad_logits ? fabsf(g->grad_logits[place]) : 0;
  if (g->grad_colors)
    for (int k = 0; k < 3; k++) size += fabsf(g->grad_colors[3 * place + k]);
  return size;
}

/* Return the size up to which the gradients of a latent are left out: 0 if one is infinite. */
INLINE float negligible_size(const Field *f, const Gradients *g, long latent) {
  float largest = 0;
  for (long p = 0; p < f->num_points; p++) largest = fmaxf(largest, gradient_size(g, latent * f->num_points + p));
  return largest <= FLT_MAX ? NEGLIGIBLE * largest : 0;
}

INLINE void append(const Field *f, const Gradients *g, long place, Batch *batch) {
  int p = batch->num++;
  memcpy(batch->points + 3 * p, f->points + 3 * place, 3 * sizeof(float));
  if (g->grad_logits) batch->out[0][p] = g->grad_logits[place];
  if (g->grad_colors)
    for (int k = 0; k < 3; k++) {
      float color = g->colors[3 * place + k];
      batch->out[k + 1][p] = g->grad_colors[3 * place + k] * color * (1 - color);
    }
}

/* grad[texels] += weight * values, for one point's channels on one plane. */
INLINE void scatter(const Field *f, const Cells *cells, int plane, int p, int vector, floats values, float *grad) {
  float *texel = grad + cells->offset[plane][p] + BLOCK * vector;
  long right = PLANES * f->channels, down = right * f->size;
  const float(*weight)[BLOCK] = cells->weight[plane];
  *(unaligned_floats *)texel += weight[0][p] * values;
  *(unaligned_floats *)(texel + right) += weight[1][p] * values;
  *(unaligned_floats *)(texel + down) += weight[2][p] * values;
  *(unaligned_floats *)(texel + down + right) += weight[3][p] * values;
}

INLINE void hidden_gradients(const Field *f, const floats *columns, int channels, long j, int num, int outputs, const floats *out,
                             floats *grad_hidden, Sums *sums) {
  floats h[8];
  hidden_units(f, columns, channels, j, num, h);
  for (int q = 0; q < num; q++) {
    floats slope, active = activation(h[q], &slope), grad = (floats){0};
    for (int k = 0; k < outputs; k++) {
      sums->output_weight[k][j + q] += active * out[k];
      grad += f->output_weight[k * f->hidden + j + q] * out[k];
    }
    grad_hidden[j + q] = grad * slope;
    sums->hidden_bias[j + q] += grad_hidden[j + q];
  }
}

INLINE void backward_batch(const Field *f, long latent, const Batch *batch, int vectors, int is_product, int outputs,
                           float *grad_planes, float *grad_hidden_weight, Sums *sums) {
  const int channels = BLOCK * vectors;
  const float *planes = f->planes + latent * f->size * f->size * PLANES * channels;
  const floats *out = batch->out;
  Cells cells;
  floats features[BLOCK][MAX_VECTORS], columns[BLOCK * MAX_VECTORS], grad_hidden[MAX_HIDDEN];
  find_cells(f, batch->points, &cells);
  look_up(f, planes, &cells, vectors, is_product, features);
  for (int v = 0; v < vectors; v++) transpose(features, v, columns + BLOCK * v);
  for (int k = 0; k < outputs; k++) sums->output_bias[k] += out[k];
  long j = 0;
  for (; j + 8 <= f->hidden; j += 8) hidden_gradients(f, columns, channels, j, 8, outputs, out, grad_hidden, sums);
  for (; j < f->hidden; j += 4) hidden_gradients(f, columns, channels, j, 4, outputs, out, grad_hidden, sums);
  for (int v = 0; v < vectors; v++) {
    floats rows[BLOCK];
    for (int p = 0; p < BLOCK; p++) rows[p] = features[p][v];
    for (long j = 0; j < f->hidden; j++) { /* two sums, since additions to one would wait for each other */
      const float *gradient = (const float *)&grad_hidden[j];
      unaligned_floats *total = (unaligned_floats *)(grad_hidden_weight + j * channels + BLOCK * v);
      floats even = *total, odd = gradient[1] * rows[1];
      for (int p = 0; p < BLOCK; p += 2) even += gradient[p] * rows[p];
      for (int p = 3; p < BLOCK; p += 2) odd += gradient[p] * rows[p];
      *total = even + odd;
    }
    for (int p = 0; p < BLOCK; p++) rows[p] = (floats){0};
    for (long j = 0; j < f->hidden; j++) {
      const float *gradient = (const float *)&grad_hidden[j];
      floats w = load(f->hidden_weight + j * channels + BLOCK * v);
      for (int p = 0; p < BLOCK; p++) rows[p] += gradient[p] * w;
    }
    for (int p = 0; p < BLOCK; p++) {
      if (!is_product) {
        for (int plane = 0; plane < PLANES; plane++) scatter(f, &cells, plane, p, v, rows[p], grad_planes);
        continue;
      }
      floats a = 1.0f + bilinear(f, planes, &cells, 0, p, v), b = 1.0f + bilinear(f, planes, &cells, 1, p, v),
             c = 1.0f + bilinear(f, planes, &cells, 2, p, v);
      scatter(f, &cells, 0, p, v, rows[p] * b * c, grad_planes);
      scatter(f, &cells, 1, p, v, rows[p] * a * c, grad_planes);
      scatter(f, &cells, 2, p, v, rows[p] * a * b, grad_planes);
    }
  }
}

INLINE float total(floats values) {
  float sum = 0;
  for (int i = 0; i < BLOCK; i++) sum += values[i];
  return sum;
}

INLINE void backward(const Field *f, int vectors, int is_product, int outputs, const Gradients *g, float *grad_planes,
                     float *grad_weights) {
  const long channels = BLOCK * vectors, hidden = f->hidden;
  const long num_weights = hidden * channels + hidden + OUTPUTS * hidden + OUTPUTS;
#pragma omp parallel for schedule(static) if (f->num_latents > 1)
  for (long latent = 0; latent < f->num_latents; latent++) {
    float *planes = grad_planes + latent * f->size * f->size * PLANES * channels, *weights = grad_weights + latent * num_weights;
    const float negligible = negligible_size(f, g, latent);
    Sums sums;
    memset(&sums, 0, sizeof(sums));
    long place = latent * f->num_points;
    const long end = place + f->num_points;
    while (place < end) {
      Batch batch = {0};
      for (; place < end && batch.num < BLOCK; place++)
        if (!(gradient_size(g, place) <= negligible)) append(f, g, place, &batch); /* keeps NaN */
      if (batch.num) backward_batch(f, latent, &batch, vectors, is_product, outputs, planes, weights, &sums);
    }
    weights += hidden * channels;
    for (long j = 0; j < hidden; j++) weights[j] = total(sums.hidden_bias[j]);
    weights += hidden;
    for (int k = 0; k < outputs; k++)
      for (long j = 0; j < hidden; j++) weights[k * hidden + j] = total(sums.output_weight[k][j]);
    weights += OUTPUTS * hidden;
    for (int k = 0; k < outputs; k++) weights[k] = total(sums.output_bias[k]);
  }
}

/* colors: output of the forward pass, needed with grad_colors. Both may be NULL, and so may grad_logits. The caller sets the
 * results to 0: grad_planes, shaped like planes; grad_weights (latents, W): hidden weight, hidden bias, output weight, output
 * bias. */
void gof_triplane_backward(const Field *f, const float *colors, const float *grad_logits, const float *grad_colors,
                           float *grad_planes, float *grad_weights) {
  const Gradients gradients = {colors, grad_logits, grad_colors};
#define BACKWARD(vectors, is_product, outputs) \
  backward(f, vectors, is_product, outputs, &gradients, grad_planes, grad_weights)
  if (f->channels == 16 && !f->is_product) {
    if (grad_colors) BACKWARD(16 / BLOCK, 0, OUTPUTS);
    else BACKWARD(16 / BLOCK, 0, 1);
  } else if (f->channels == 16) BACKWARD(16 / BLOCK, 1, OUTPUTS);
  else if (!f->is_product) BACKWARD(32 / BLOCK, 0, OUTPUTS);
  else BACKWARD(32 / BLOCK, 1, OUTPUTS);
}
