"""Write meshes as binary glTF 2.0 (.glb).

Vertex colors are linear in glTF, base-color textures are sRGB; the field's colors are sRGB, as in any image.
Source: Khronos, glTF 2.0 specification, sections 3.7 (meshes), 3.9 (materials) and 4.4 (GLB); KHR_materials_unlit.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FLOAT, UINT16, UINT32 = 5126, 5123, 5125  # component types
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


@dataclass(frozen=True)
class Material:
    """Matte, nonmetallic material. ``is_lit``: shaded by the viewer's lights; otherwise colors are shown unshaded.

    ``base_color`` (sRGB) and ``normal_map`` (tangent space, +y along the bitangent): (H, W, 3) uint8, row 0 at v = 0.
    None: vertex colors only.
    """

    is_lit: bool
    base_color: np.ndarray | None = None
    normal_map: np.ndarray | None = None


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """Convert sRGB values in [0, 1], of any shape, to linear. Source: IEC 61966-2-1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Inverse of :func:`srgb_to_linear`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def linear_colors(srgb: np.ndarray) -> np.ndarray:
    """Convert sRGB bytes (V, 3) to COLOR_0 (V, 4): linear, opaque, normalized uint16, because bytes would lose dark tones."""
    linear = np.round(srgb_to_linear(srgb / 255) * 65535).astype(np.uint16)
    return np.concatenate([linear, np.full((len(linear), 1), 65535, dtype=np.uint16)], axis=1)


def png_bytes(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 as a PNG file."""
    from PIL import Image  # here: benchmarks/gpu.py runs without it

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def glb_bytes(attributes: Mapping[str, np.ndarray], faces: np.ndarray, material: Material) -> bytes:
    """Encode one mesh as a .glb file.

    Args:
        attributes: by glTF name: POSITION and unit NORMAL (V, 3), and optionally TANGENT (V, 4) and TEXCOORD_0 (V, 2),
            all float, and COLOR_0 of :func:`linear_colors`.
        faces: (F, 3), counterclockwise seen from outside.
    """
    buffer = _Buffer()
    indices = {}
    for name, values in attributes.items():
        values = values if values.dtype == np.uint16 else values.astype(np.float32)
        indices[name] = buffer.add_accessor(values, ARRAY_BUFFER, has_bounds=name == "POSITION")
    primitive = {
        "attributes": indices,
        "indices": buffer.add_accessor(faces.astype(np.uint32).reshape(-1, 1), ELEMENT_ARRAY_BUFFER),
        "material": 0,
    }
    tree = {
        "asset": {"version": "2.0", "generator": "Generative Occupancy Fields"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        **_material_tree(material, buffer),
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.data)}],
    }
    header = _padded(json.dumps(tree, separators=(",", ":")).encode(), b" ")
    length = 12 + 8 + len(header) + 8 + len(buffer.data)
    return b"".join(
        (
            struct.pack("<4sII", b"glTF", 2, length),
            struct.pack("<II", len(header), JSON_CHUNK),
            header,
            struct.pack("<II", len(buffer.data), BINARY_CHUNK),
            buffer.data,
        )
    )


def _material_tree(material: Material, buffer: _Buffer) -> dict[str, object]:
    """Return the JSON entries of the material and its images, and add the images to ``buffer``."""
    surface: dict[str, object] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    described: dict[str, object] = {"pbrMetallicRoughness": surface, "doubleSided": True}
    tree: dict[str, object] = {"materials": [described]}
    if not material.is_lit:
        described["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
    images = []
    if material.base_color is not None:
        surface["baseColorTexture"] = {"index": len(images)}
        images.append(material.base_color)
    if material.normal_map is not None:
        described["normalTexture"] = {"index": len(images)}
        images.append(material.normal_map)
    if images:
        tree["images"] = [{"bufferView": buffer.add_view(png_bytes(image)), "mimeType": "image/png"} for image in images]
        tree["textures"] = [{"sampler": 0, "source": index} for index in range(len(images))]
        filters = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR}
        tree["samplers"] = [filters | {"wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}]
    return tree


class _Buffer:
    """Binary chunk and the JSON entries that index it."""

    def __init__(self) -> None:
        self.data = b""
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, object]] = []

    def add_view(self, data: bytes, target: int | None = None) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.data += _padded(data, b"\0")
        return len(self.views) - 1

    def add_accessor(self, values: np.ndarray, target: int, has_bounds: bool = False) -> int:
        """Add values (K, C): float32, uint16 (normalized) or uint32. Returns the accessor's index."""
        component = {"float32": FLOAT, "uint16": UINT16, "uint32": UINT32}[values.dtype.name]
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
        accessor: dict[str, object] = {
            "bufferView": self.add_view(data, target),
            "componentType": component,
            "count": len(values),
            "type": TYPES[values.shape[1]],
        }
        if component == UINT16:
            accessor["normalized"] = True
        if has_bounds:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _padded(data: bytes, filler: bytes) -> bytes:
    """Pad to a multiple of four bytes."""
    return data + filler * (-len(data) % 4)
