// The renderer's own shaders. One pass finds the root of every ray, a second shades it, a third puts it on the canvas.

const VERTEX_GLSL = `#version 300 es
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0; // one triangle that covers the viewport
  gl_Position = vec4(corner, 0.0, 1.0);
}`;

const FRAGMENT_HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
precision highp usampler2D;
`;

// Pixels lie on linspace(-1, 1, size), ends included, row 0 at the top; t is the distance along the unit ray.
const CAMERA_GLSL = `
uniform vec3 origin;
uniform mat3 axes; // columns: right, up, back
uniform float focalLength;
uniform int size;
vec3 rayDirection() {
  vec2 grid = 2.0 * floor(gl_FragCoord.xy) / float(size - 1) - 1.0;
  return axes * normalize(vec3(grid, -focalLength));
}
`;

// docs/method.md, "Finding the surface": the first sign change from free to solid among coarse samples, then the secant method.
// The field is evaluated at a single place in the code, so that its long code is compiled only once.
const ROOT_GLSL = `
uniform float tNear;
uniform float tFar;
uniform int numCoarse;
uniform int numRootSteps;
uniform bool bisects;
layout(location = 0) out uvec2 root; // bits of t, or of -1 without a surface; points evaluated
void main() {
  vec3 direction = rayDirection();
  float t = tNear, tLow = tNear, tHigh = tFar, levelLow = -1.0, levelHigh = 1.0;
  int numFree = 0, numSteps = 0;
  bool inBracket = false, hit = false;
  uint numPoints = 0u;
  while (numFree < numCoarse) {
    float level = occupancyLogit(origin + t * direction);
    numPoints++;
    if (inBracket) numSteps++;
    if (level >= 0.0) {
      if (numFree == 0) break; // the ray begins inside
      inBracket = true;
      tHigh = t;
      levelHigh = level;
    } else {
      tLow = t;
      levelLow = level;
      if (!inBracket) numFree++;
    }
    if (inBracket) {
      float fraction = bisects ? 0.5 : clamp(-levelLow / max(levelHigh - levelLow, 1e-12), 0.0, 1.0);
      t = tLow + fraction * (tHigh - tLow);
      hit = numSteps == numRootSteps;
      if (hit) break;
    } else {
      t = mix(tNear, tFar, float(numFree) / float(numCoarse - 1));
    }
  }
  root = uvec2(floatBitsToUint(hit ? t : -1.0), numPoints);
}
`;

const SHADE_GLSL = `
uniform usampler2D roots;
uniform float tNear;
uniform float tFar;
layout(location = 0) out vec4 pixel;
vec3 shade(float t, vec3 direction);
void main() {
  float t = uintBitsToFloat(texelFetch(roots, ivec2(gl_FragCoord.xy), 0).x);
  pixel = vec4(shade(t, rayDirection()), 1.0);
}
`;

// The color of a pixel; t < 0 without a surface. As in the project's other images, white means that there is no value.
const SHADING_GLSL = {
  image: `
uniform bool fillsWithFarEnd;
uniform vec3 background;
vec3 shade(float t, vec3 direction) {
  if (t < 0.0 && !fillsWithFarEnd) return background;
  return fieldColor(origin + (t < 0.0 ? tFar : t) * direction, direction);
}`,
  surface: `
vec3 shade(float t, vec3 direction) {
  return t < 0.0 ? vec3(1.0) : fieldColor(origin + t * direction, direction);
}`,
  normals: `
vec3 shade(float t, vec3 direction) {
  return t < 0.0 ? vec3(1.0) : 0.5 - 0.5 * normalize(logitGradient(origin + t * direction));
}`,
  depth: `
uniform vec3 depthColors[8]; // from far to near
vec3 shade(float t, vec3 direction) {
  if (t < 0.0) return vec3(1.0);
  float nearness = clamp((tFar - t) / (tFar - tNear), 0.0, 1.0) * 7.0;
  int below = min(int(nearness), 6);
  return mix(depthColors[below], depthColors[below + 1], nearness - float(below));
}`,
};

const MODES = Object.keys(SHADING_GLSL);

// Enlarges a frame bilinearly, pixel centers kept on linspace(-1, 1, size) so that nothing moves when the size changes.
const PRESENT_GLSL = `${FRAGMENT_HEAD}
uniform sampler2D frame;
uniform int canvasSize;
layout(location = 0) out vec4 pixel;
void main() {
  vec2 size = vec2(textureSize(frame, 0));
  vec2 fraction = floor(gl_FragCoord.xy) / float(canvasSize - 1);
  pixel = texture(frame, (fraction * (size - 1.0) + 0.5) / size);
}`;

function rootShader(field) {
  return [FRAGMENT_HEAD, field.declarations, CAMERA_GLSL, ROOT_GLSL].join("");
}

function shadingShader(field, mode) {
  const needs = mode === "normals" ? "#define NEEDS_GRADIENT\n" : "";
  const declarations = mode === "depth" ? "" : field.declarations;
  return [FRAGMENT_HEAD, needs, declarations, CAMERA_GLSL, SHADE_GLSL, SHADING_GLSL[mode]].join("");
}
