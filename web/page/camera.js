// The camera of generators/cameras.py: on the unit sphere, looking at the origin along its own -z, +y up; angles in radians.

const PITCH_EPS = 1e-5;

function normalized(v) {
  const length = Math.hypot(...v);
  return v.map((value) => value / length);
}

function cross(a, b) {
  return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
}

/** Position and axes of a pose: {origin: 3 numbers, axes: 9 numbers, the columns right, up, back one after the other}. */
function cameraOf(yaw, pitch) {
  const angle = Math.min(Math.max(pitch, PITCH_EPS), Math.PI - PITCH_EPS);
  const origin = [Math.sin(angle) * Math.cos(yaw), Math.cos(angle), Math.sin(angle) * Math.sin(yaw)];
  const forward = normalized(origin.map((value) => -value));
  const left = normalized(cross([0, 1, 0], forward));
  const up = normalized(cross(forward, left));
  return { origin, axes: [...left.map((value) => -value), ...up, ...forward.map((value) => -value)] };
}

function focalLength(fovDegrees) {
  return 1 / Math.tan((fovDegrees * Math.PI) / 360);
}
