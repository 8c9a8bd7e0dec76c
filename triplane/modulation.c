/* The operations between the backbone's convolutions, in one pass over channels-last float32 images:
 *
 *   y = leaky_relu(x demodulation + bias) style
 *
 * and its backward pass, which reads x and the gradient and writes the gradient of x. x is (images, pixels, channels);
 * demodulation and style are (images, channels). Each thread gets 16 channels of an image, one cache line of every pixel, so
 * sums do not depend on the number of threads. */
#define LANES 16
#define LEAK 0.2f
#define INLINE static inline __attribute__((always_inline))

typedef struct {
  const float *x, *demodulation, *bias, *style;
  long num_images, num_pixels, num_channels;
} Layer;

INLINE void forward(const Layer *l, long image, long first, int lanes, float *y) {
  const long c = l->num_channels;
  const float *demodulation = l->demodulation + image * c + first, *style = l->style + image * c + first;
  const float *bias = l->bias + first, *x = l->x + image * l->num_pixels * c + first;
  y += image * l->num_pixels * c + first;
  for (long pixel = 0; pixel < l->num_pixels; pixel++, x += c, y += c)
#pragma omp simd
    for (int i = 0; i < lanes; i++) {
      float u = x[i] * demodulation[i] + bias[i];
      y[i] = (u > 0 ? u : LEAK * u) * style[i];
    }
}

INLINE void backward(const Layer *l, long image, long first, int lanes, const float *grad, float *grad_x, float *sums) {
  const long c = l->num_channels, start = image * l->num_pixels * c + first, all = l->num_images * c;
  float demodulation[LANES], style[LANES], bias[LANES], of_demodulation[LANES], of_bias[LANES], of_style[LANES];
  for (int i = 0; i < lanes; i++) {
    demodulation[i] = l->demodulation[image * c + first + i];
    style[i] = l->style[image * c + first + i];
    bias[i] = l->bias[first + i];
    of_demodulation[i] = of_bias[i] = of_style[i] = 0;
  }
  const float *x = l->x + start;
  grad += start, grad_x += start;
  for (long pixel = 0; pixel < l->num_pixels; pixel++, x += c, grad += c, grad_x += c)
#pragma omp simd
    for (int i = 0; i < lanes; i++) {
      float u = x[i] * demodulation[i] + bias[i], slope = u > 0 ? 1 : LEAK, g = grad[i];
      of_style[i] += g * slope * u;
      g *= slope * style[i];
      of_bias[i] += g;
      of_demodulation[i] += g * x[i];
      grad_x[i] = g * demodulation[i];
    }
  sums += image * c + first;
  for (int i = 0; i < lanes; i++) {
    sums[i] = of_demodulation[i];
    sums[all + i] = of_bias[i];
    sums[2 * all + i] = of_style[i];
  }
}

void gof_modulate(const Layer *l, float *y) {
  const long chunks = (l->num_channels + LANES - 1) / LANES;
#pragma omp parallel for schedule(static)
  for (long i = 0; i < l->num_images * chunks; i++) {
    long first = i % chunks * LANES, left = l->num_channels - first;
    if (left >= LANES) forward(l, i / chunks, first, LANES, y);
    else forward(l, i / chunks, first, (int)left, y);
  }
}

/* sums (3, images, channels): gradients of demodulation, of bias for each image, and of style. */
void gof_modulate_backward(const Layer *l, const float *grad, float *grad_x, float *sums) {
  const long chunks = (l->num_channels + LANES - 1) / LANES;
#pragma omp parallel for schedule(static)
  for (long i = 0; i < l->num_images * chunks; i++) {
    long first = i % chunks * LANES, left = l->num_channels - first;
    if (left >= LANES) backward(l, i / chunks, first, LANES, grad, grad_x, sums);
    else backward(l, i / chunks, first, (int)left, grad, grad_x, sums);
  }
}
