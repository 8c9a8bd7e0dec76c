// ?benchmark: measure frame times in this browser, and the points that frames evaluate.

const BENCHMARK_SIZES = [128, 256];
const BENCHMARK_SECONDS = 4; // per size
const MAX_FRAMES = 60;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** {gpu, model, firstFrameMs, results: [{size, frames, medianMs, pointsPerPixel, gflopPerFrame, gflops}]}; a flop is a multiplication or addition. */
async function runBenchmark(viewer, onProgress) {
  await viewer.settled();
  const results = [];
  for (const size of BENCHMARK_SIZES) {
    onProgress(`Measuring ${size} px ...`);
    await viewer.capture(32); // compiles the shaders, and measures how large strips may be
    const times = [];
    let last;
    for (const start = performance.now(); performance.now() - start < 1000 * BENCHMARK_SECONDS && times.length < MAX_FRAMES; ) {
      last = await viewer.capture(size);
      times.push(last.ms);
    }
    const { evaluationCost, colorCost } = viewer.renderer.field.program;
    const gflop = (2 * (last.numPoints * evaluationCost + size ** 2 * colorCost)) / 1e9;
    const medianMs = median(times);
    results.push({
      size,
      frames: times.length,
      medianMs,
      pointsPerFrame: last.numPoints + size ** 2,
      pointsPerPixel: last.numPoints / size ** 2 + 1,
      gflopPerFrame: gflop,
      gflops: (1000 * gflop) / medianMs,
    });
  }
  return { gpu: gpuName(viewer.gl), model: viewer.state.model, firstFrameMs: viewer.firstFrameMs, results };
}
