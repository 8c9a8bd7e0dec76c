"""Textured meshes: the content of the texture, and how independent readers interpret the files."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import extract_shapes
from checkpoints.files import save_inference
from checkpoints.loading import load_generator
from readers import draw_in_browser, validate_glb
from settings.registry import CURRICULUMS
from tools import mesh_score
from visualization.generator_scripts import field_from_seed
from visualization.gltf import linear_colors, linear_to_srgb, srgb_to_linear
from visualization.mesh_rendering import open_renderer, pose_matrix
from visualization.meshes import MeshSettings, extract_mesh, fill_occupancy, refine_vertices, save_mesh, vertex_colors
from visualization.textures import (
    GUTTER,
    TexturedMesh,
    decimate,
    move_to_surface,
    rasterize,
    save_textured_mesh,
    texture_mesh,
    unwrap,
)
from visualization.trajectories import TrajectoryPose

BFM = CURRICULUMS["BFM"]
RADIUS, RESOLUTION, SIDE = 0.07, 32, 256
CENTER = np.array([0.02, -0.01, 0.03])
SPACING = 0.3 / (RESOLUTION - 1)
SETTINGS = MeshSettings()


class StripedBall:
    """A ball whose colors change within a face of a coarse mesh, and not along the radius."""

    batch_size = 1

    def occupancy_logits(self, points: Tensor) -> Tensor:
        return 300 * (RADIUS - (points - torch.tensor(CENTER, dtype=points.dtype)).norm(dim=-1))

    def logits_and_colors(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.occupancy_logits(points), torch.from_numpy(stripes(points.numpy())).float()

    def normals(self, points: Tensor) -> Tensor:
        return torch.nn.functional.normalize(points - torch.tensor(CENTER, dtype=points.dtype), dim=-1)


def stripes(points: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(8 * radial(points))


def radial(points: np.ndarray) -> np.ndarray:
    offset = points - CENTER
    return offset / np.linalg.norm(offset, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def coarse_ball():
    """400 faces, from about 2,000."""
    voxels = np.empty((RESOLUTION,) * 3, dtype=np.float32)
    fill_occupancy(voxels, StripedBall(), BFM, 0.3)
    mesh = extract_mesh(voxels, SETTINGS)
    refine_vertices(mesh, StripedBall(), BFM, SETTINGS, RESOLUTION)
    assert len(mesh.faces) > 1500
    return decimate(mesh, 400, StripedBall(), BFM, SETTINGS, SPACING)


@pytest.fixture(scope="module")
def textured(coarse_ball) -> TexturedMesh:
    return texture_mesh(coarse_ball, SIDE, StripedBall(), BFM, SETTINGS, SPACING, with_normal_map=True)


def random_surface_points(mesh: TexturedMesh, num: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Faces (num,) and barycentric weights (num, 3); a third of them on edges, including those of charts."""
    random = np.random.default_rng(0)
    weights = random.dirichlet(np.ones(3), num)
    weights[: num // 3, 0] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return random.integers(0, len(mesh.faces), num), weights


def at(values: np.ndarray, mesh: TexturedMesh, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("kc,kcx->kx", weights, values[mesh.faces[face]])


def bilinear(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Sample as a viewer does: texel centers at ((column, row) + 0.5) / size."""
    place = uv * len(image) - 0.5
    low = np.floor(place).astype(int)
    part = place - low
    total = np.zeros((len(uv), 3))
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = ((low[:, axis] + step).clip(0, len(image) - 1) for axis, step in ((0, dx), (1, dy)))
        weight = (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
        total += weight[:, None] * image[row, column]
    return total


# -- making ----------------------------------------------------------------------------------------------------------------


def test_decimation_keeps_vertices_on_the_surface(coarse_ball) -> None:
    assert len(coarse_ball.faces) == pytest.approx(400, abs=4) and coarse_ball.is_watertight
    assert np.abs(np.linalg.norm(coarse_ball.vertices - CENTER, axis=1) - RADIUS).max() < 1e-5
    assert decimate(coarse_ball, 1000, StripedBall(), BFM, SETTINGS, SPACING) is coarse_ball


def test_points_move_along_their_normals_within_the_limit() -> None:
    direction = torch.tensor([[0.6, 0.8, 0.0]])
    center = torch.tensor(CENTER, dtype=torch.float32)
    points = torch.cat([center + direction * distance for distance in (0.066, 0.075, 0.09)])
    level = lambda p: StripedBall().occupancy_logits(p)  # noqa: E731
    moved, hit = move_to_surface(points, direction.expand(3, 3), level, reach=0.01)
    assert hit.tolist() == [True, True, False]
    assert (moved[:2] - center).norm(dim=-1).numpy() == pytest.approx([RADIUS] * 2, abs=1e-5)
    assert torch.equal(moved[2], points[2])


def test_rasterizing_agrees_with_one_texel_at_a_time() -> None:
    uv = np.array([[0.1, 0.1], [0.5, 0.15], [0.3, 0.6], [0.6, 0.7], [0.55, 0.2], [0.9, 0.9], [0.91, 0.9], [0.2, 0.2]])
    faces = np.array([[0, 1, 2], [1, 4, 2], [2, 4, 3], [5, 5, 6]])  # the last has no area
    size = 24
    texels = rasterize(uv, faces, size)
    for row in range(size):
        for column in range(size):
            center = (np.array([column, row]) + 0.5) / size
            matrices = [np.vstack([uv[face].T, np.ones(3)]) for face in faces[:3]]
            weights = [np.linalg.solve(matrix, [*center, 1]) for matrix in matrices]
            inside = [index for index, weight in enumerate(weights) if weight.min() >= -1e-9]
            assert bool(inside) == (texels.distance[row, column] == 0)
            if inside:
                assert texels.face[row, column] in inside
            assert texels.weights[row, column] == pytest.approx(weights[texels.face[row, column]], abs=1e-6)


def test_charts_do_not_overlap_and_fill_the_texture(coarse_ball) -> None:
    original, faces, uv = unwrap(coarse_ball, SIDE)
    assert np.array_equal(original[faces], coarse_ball.faces)
    assert uv.min() >= 0 and uv.max() == pytest.approx(1, abs=0.02)
    edge1, edge2 = (uv[faces[:, i]] - uv[faces[:, 0]] for i in (1, 2))
    area = np.abs(edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]).sum() / 2
    covered = (rasterize(uv, faces, SIDE).distance == 0).mean()
    assert covered == pytest.approx(area, rel=0.03) and area > 0.4


def test_texture_holds_the_field_between_vertices_and_at_seams(textured: TexturedMesh) -> None:
    face, weights = random_surface_points(textured)
    on_face = at(textured.positions, textured, face, weights)
    read = bilinear(textured.base_color, at(textured.uv, textured, face, weights))
    expected = stripes(on_face) * 255
    assert np.abs(read - expected).mean() < 1.5 and np.percentile(np.abs(read - expected), 99) < 6
    from_vertices = at(stripes(textured.positions) * 255, textured, face, weights)
    assert np.abs(from_vertices - expected).mean() > 5


def test_normal_map_turns_the_interpolated_normal_into_the_fields(textured: TexturedMesh) -> None:
    """Decode as a viewer does: normal, tangent and bitangent of the vertices, interpolated."""
    face, weights = random_surface_points(textured)
    normal, tangent = (at(values, textured, face, weights) for values in (textured.normals, textured.tangents[:, :3]))
    normal, tangent = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (normal, tangent))
    bitangent = np.cross(normal, tangent) * textured.tangents[textured.faces[face, 0], 3:]
    local = bilinear(textured.normal_map, at(textured.uv, textured, face, weights)) / 255 * 2 - 1
    decoded = local[:, :1] * tangent + local[:, 1:2] * bitangent + local[:, 2:] * normal
    expected = radial(at(textured.positions, textured, face, weights))
    before, after = (angles(values, expected) for values in (normal, decoded))
    assert after.mean() < 0.5 < before.mean() and np.percentile(after, 99) < 2


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def test_bitangents_point_up_the_texture(textured: TexturedMesh) -> None:
    """Readers that compute tangents by the convention of glTF and OBJ then show the same relief."""
    corners, uv = textured.positions[textured.faces], textured.uv[textured.faces]
    matrices = np.stack([uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]], axis=1)
    sound = np.abs(np.linalg.det(matrices)) > 1e-6
    edges = np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], axis=1)
    along = np.linalg.solve(matrices[sound], edges[sound])  # (F, 2, 3): along u, along v
    corner = textured.faces[sound, 0]
    tangent, sign = textured.tangents[corner, :3], textured.tangents[corner, 3:]
    bitangent = np.cross(textured.normals[corner], tangent) * sign
    assert ((along[:, 0] * tangent).sum(axis=1) > 0).mean() > 0.99
    assert ((along[:, 1] * bitangent).sum(axis=1) < 0).mean() > 0.99


# -- files -----------------------------------------------------------------------------------------------------------------


def test_srgb_and_linear_values() -> None:
    assert srgb_to_linear(np.array([0.0, 0.04045, 0.5, 1.0])) == pytest.approx([0, 0.0031308, 0.2140411, 1], abs=1e-6)
    bytes_ = np.arange(256)
    assert np.allclose(linear_to_srgb(srgb_to_linear(bytes_ / 255)), bytes_ / 255)
    stored = linear_colors(np.repeat(bytes_[:, None], 3, axis=1))
    assert stored.dtype == np.uint16 and (stored[:, 3] == 65535).all()
    assert np.array_equal(np.round(linear_to_srgb(stored[:, 0] / 65535) * 255), bytes_), "no tone is lost"


def test_glb_is_read_back_by_trimesh_and_its_material_is_matte(textured: TexturedMesh, tmp_path: Path) -> None:
    import trimesh

    save_textured_mesh(textured, tmp_path / "m")
    (mesh,) = trimesh.load(tmp_path / "m.glb", process=False).geometry.values()
    assert np.allclose(mesh.vertices, textured.positions, atol=1e-6) and np.array_equal(mesh.faces, textured.faces)
    assert np.allclose(mesh.visual.uv, textured.uv * [1, -1] + [0, 1], atol=1e-6), "trimesh's v runs up"
    material = mesh.visual.material
    assert np.array_equal(np.array(material.baseColorTexture), textured.base_color)
    assert np.array_equal(np.array(material.normalTexture), textured.normal_map)
    assert material.metallicFactor == 0 and material.roughnessFactor == 1
    tree = json_of_glb(tmp_path / "m.glb")
    assert {"POSITION", "NORMAL", "TANGENT", "TEXCOORD_0"} == set(tree["meshes"][0]["primitives"][0]["attributes"])
    assert "extensions" not in tree["materials"][0], "a normal map needs lights"


def json_of_glb(path: Path) -> dict:
    data = path.read_bytes()
    magic, version, length, header_length = struct.unpack("<4sIII", data[:16])
    assert magic == b"glTF" and version == 2 and length == len(data)
    return json.loads(data[20 : 20 + header_length])


def test_obj_is_read_back_with_its_texture(textured: TexturedMesh, tmp_path: Path) -> None:
    import trimesh

    paths = save_textured_mesh(textured, tmp_path / "m", (".obj",))
    assert [path.name for path in paths] == ["m_texture.png", "m_normals.png", "m.mtl", "m.obj"]
    mesh = trimesh.load(tmp_path / "m.obj", force="mesh", process=False)
    assert np.array_equal(np.array(mesh.visual.material.image), textured.base_color)
    assert len(mesh.faces) == len(textured.faces)
    uv = mesh.visual.uv * [1, -1] + [0, 1]
    points = mesh.triangles_center
    read = bilinear(textured.base_color, uv[mesh.faces].mean(axis=1))
    assert np.abs(read - stripes(points) * 255).mean() < 1.5


def test_ply_holds_srgb_bytes(coarse_ball, tmp_path: Path) -> None:
    """Read byte by byte."""
    mesh = coarse_ball.copy()
    mesh.visual.vertex_colors = vertex_colors(mesh, StripedBall(), BFM)
    save_mesh(mesh, tmp_path / "m", (".ply",))
    header, body = (tmp_path / "m.ply").read_bytes().split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[1] == "format binary_little_endian 1.0"
    start = lines.index(f"element vertex {len(mesh.vertices)}")
    types = {"float": "<f4", "uchar": "u1"}
    properties = [line.split() for line in lines[start + 1 :]]
    properties = properties[: next(i for i, words in enumerate(properties) if words[0] != "property")]
    vertices = np.frombuffer(body, dtype=[(name, types[kind]) for _, kind, name in properties], count=len(mesh.vertices))
    points, colors = (
        np.stack([vertices[name] for name in names], axis=1) for names in (("x", "y", "z"), ("red", "green", "blue"))
    )
    assert np.abs(colors - stripes(points.astype(np.float64)) * 255).max() <= 1


def test_the_khronos_validator_reports_nothing(textured: TexturedMesh, coarse_ball, tmp_path: Path) -> None:
    mesh = coarse_ball.copy()
    mesh.visual.vertex_colors = vertex_colors(mesh, StripedBall(), BFM)
    save_mesh(mesh, tmp_path / "colored", (".glb",))
    save_textured_mesh(textured, tmp_path / "textured")
    for name, num_vertices in (("colored", len(mesh.vertices)), ("textured", len(textured.positions))):
        report = validate_glb(tmp_path / f"{name}.glb")
        assert report["issues"]["messages"] == []
        assert report["info"]["totalVertexCount"] == num_vertices and report["info"]["hasTextures"] == (name == "textured")


# -- commands --------------------------------------------------------------------------------------------------------------


def extract(path: Path, output_dir: Path, *arguments: str) -> dict[str, bytes]:
    common = ["--seeds", "0", "--voxel_resolution", "32", "--device", "cpu", "--output_dir", str(output_dir)]
    extract_shapes.main([str(path), *common, *arguments])
    return {path.name: path.read_bytes() for path in output_dir.iterdir()}


def test_command_writes_textures_the_same_each_time_and_leaves_nothing_stale(tiny_generator_path: Path, tmp_path: Path) -> None:
    arguments = ["--texture", "64", "--faces", "300", "--obj", "--normal_map"]
    files = extract(tiny_generator_path, tmp_path / "a", *arguments)
    endings = (".ply", ".glb", ".obj", ".mtl", "_texture.png", "_normals.png", "_voxel.npy", ".json")
    assert set(files) == {*(f"0_32{ending}" for ending in endings), "generator.json"}
    assert files == extract(tiny_generator_path, tmp_path / "b", *arguments)
    assert np.array(Image.open(tmp_path / "a" / "0_32_texture.png")).shape == (64, 64, 3)
    files = extract(tiny_generator_path, tmp_path / "a", "--faces", "300")
    assert set(files) == {"0_32.ply", "0_32.glb", "0_32_voxel.npy", "0_32.json", "generator.json"}


def test_a_normal_map_without_a_texture_is_refused(tiny_generator_path: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        extract(tiny_generator_path, tmp_path, "--normal_map")
    assert stopped.value.code == 2 and "--normal_map needs --texture" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_in_a_browser_look_like_the_rendered_image(tiny_generator_path: Path, tmp_path: Path) -> None:
    """three.js, beside ``surface_image``: the unlit texture, and vertex colors under even light.

    A mesh has the colors of the mean view direction, so the generator is made independent of the direction.
    """
    loaded = load_generator(tiny_generator_path)
    with torch.no_grad():
        loaded.generator.siren.color_layer_sine.layer.weight[:, :3] = 0
    plain = tmp_path / "plain.safetensors"
    save_inference(plain, loaded.generator, 0)
    extract(plain, tmp_path, "--texture", "128", "--faces", "1000")
    (tmp_path / "0_32.glb").rename(tmp_path / "texture.glb")
    extract(plain, tmp_path)
    pose = TrajectoryPose(math.pi / 2 + 0.4, math.pi / 2 - 0.2, 12.0)
    size = 64
    expected = mesh_score.surface_image(loaded, field_from_seed(loaded, 0, 0.7), pose, size)
    fov = math.degrees(2 * math.atan(math.tan(math.radians(6)) * size / (size - 1)))
    names = [tmp_path / "texture.glb", tmp_path / "0_32.glb"]
    images = draw_in_browser(names, tmp_path, pose_matrix(pose.yaw, pose.pitch), fov, size)
    expected = np.round((expected.permute(1, 2, 0).numpy() + 1) * 127.5)
    solid = expected.any(axis=2)
    for image, limit in zip(images, (1.5, 2.5), strict=True):  # three.js draws lit colors about 1% darker
        assert (image.any(axis=2) ^ solid).mean() < 0.01
        both = image.any(axis=2) & solid
        assert np.abs(image[both].astype(float) - expected[both]).mean() < limit


def test_score_of_a_mesh(tiny_generator_path: Path, tmp_path: Path) -> None:
    if not open_renderer("auto").name.startswith("pyrender"):
        pytest.skip("no GL here")
    arguments = ["--seeds", "0", "--image_size", "48", "--voxel_resolution", "32", "--faces", "400", "--texture", "128"]
    mesh_score.main([str(tiny_generator_path), *arguments, "--sheet", "--device", "cpu", "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / "mesh_score.json").read_text())
    assert len(report["scores"]) == 3 and report["views"][2] == pytest.approx([math.pi / 2, math.pi / 2, 12.0])
    for name, score in report["scores"].items():
        assert score["psnr_db"] > 25, name
    assert Image.open(tmp_path / "0_compared.png").size[0] > 5 * 48


def test_gutter_is_within_the_padding() -> None:
    from visualization.textures import PADDING

    assert 2 * GUTTER <= PADDING
