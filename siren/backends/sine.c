/* sin and its backward pass over float32 arrays, written so that the compiler vectorizes them.
 *
 * sin(x) = (-1)^k sin(r),  k = round(x / pi),  r = x - k pi in [-pi/2, pi/2], pi in three parts (Cody and Waite), then an
 * odd minimax polynomial of degree 9: |error| < 5e-9 before rounding. cos(x) = -(-1)^k sin(r) with k a half-integer.
 * Threads come from the OpenMP runtime that PyTorch has already loaded. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float reduced_sine(float r, float k) {
  float r2 = r * r;
  float p = 2.600054770445584e-06f;
  p = fmaf(p, r2, -0.00019806615202251247f);
  p = fmaf(p, r2, 0.008333017291566894f);
  p = fmaf(p, r2, -0.16666657096504148f);
  float s = fmaf(p * r2, r, r);
  uint32_t bits, sign = (uint32_t)(int32_t)k << 31;
  memcpy(&bits, &s, 4);
  bits ^= sign;
  memcpy(&s, &bits, 4);
  return s;
}

static inline float reduce(float x, float k) {
  float r = fmaf(k, -3.140625f, x);
  r = fmaf(k, -9.67502593994140625e-4f, r);
  return fmaf(k, -1.509957990978376e-7f, r);
}

static inline float sine(float x) {
  float k = rintf(x * 0.31830988618379067f);
  return reduced_sine(reduce(x, k), k);
}

static inline float cosine(float x) {
  float k = rintf(x * 0.31830988618379067f - 0.5f);
  return -reduced_sine(reduce(x, k + 0.5f), k);
}

void gof_sine(const float *x, float *y, long n) {
#pragma omp parallel for simd schedule(static) if (n > 32768)
  for (long i = 0; i < n; i++) y[i] = sine(x[i]);
}

/* x += bias (stored only if y is another array), y = sin(x), for rows x columns values. */
void gof_biased_sine(float *x, const float *bias, float *y, long rows, long columns) {
#pragma omp parallel for schedule(static) if (rows * columns > 32768)
  for (long i = 0; i < rows; i++) {
    float *xi = x + i * columns, *yi = y + i * columns;
    if (x == y) {
#pragma omp simd
      for (long j = 0; j < columns; j++) xi[j] = sine(xi[j] + bias[j]);
    } else {
#pragma omp simd
      for (long j = 0; j < columns; j++) {
        float phase = xi[j] + bias[j];
        xi[j] = phase;
        yi[j] = sine(phase);
      }
    }
  }
}

void gof_sine_backward(const float *grad, const float *x, float *out, long n) {
#pragma omp parallel for simd schedule(static) if (n > 32768)
  for (long i = 0; i < n; i++) out[i] = grad[i] * cosine(x[i]);
}
