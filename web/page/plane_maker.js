// The page's end of the worker that makes the planes of a tri-plane generator.

/** One generator's worker. Its script is in the page, as text: a worker from a blob: URL needs no file beside the page. */
class PlaneMaker {
  constructor(settings, tensors) {
    const script = new Blob([byId("worker-script").textContent], { type: "text/javascript" });
    const url = URL.createObjectURL(script);
    this.worker = new Worker(url);
    URL.revokeObjectURL(url);
    const backboneTensors = Object.fromEntries(Object.entries(tensors).filter(([name]) => name.startsWith("triplane.backbone.")));
    this.worker.postMessage({ settings, tensors: backboneTensors });
    this.waiting = new Map(); // request number -> {resolve, reject}
    this.numRequests = 0;
    this.worker.onmessage = ({ data: { id, values } }) => this.settle(id, ({ resolve }) => resolve(values));
    this.worker.onerror = ({ message }) => {
      for (const id of [...this.waiting.keys()]) this.settle(id, ({ reject }) => reject(new Error(message)));
    };
  }

  settle(id, how) {
    how(this.waiting.get(id));
    this.waiting.delete(id);
  }

  /** The planes of styles (Float64Array): a Float64Array (size, size, 3 * channels). */
  planes(styles) {
    const id = this.numRequests++;
    this.worker.postMessage({ id, styles });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }
}
