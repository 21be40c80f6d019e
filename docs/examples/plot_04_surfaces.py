r"""
Geodesics in closed form: the half-plane and the sphere
=======================================================

A metric need not come from a network. On the hyperbolic half-plane
:math:`G(z) = I / z_2^2`, and geodesics are half circles around points of the axis; on the sphere
they are great circles. Both distances are known, so that the lengths can be checked.
"""

# %%
# The half-plane by its tensor.

import matplotlib.pyplot as plt
import torch

import geolatent as gl


def half_plane_tensor(z):
    return torch.eye(2, dtype=z.dtype) / z[:, 1, None, None].square()


half_plane = gl.TensorMetric(half_plane_tensor, dim=2)
start = torch.tensor([[-1.0, 0.3], [-1.0, 0.3], [0.5, 0.4], [1.6, 0.25]], dtype=torch.float64)
end = torch.tensor([[1.0, 0.3], [-0.2, 1.6], [1.5, 1.2], [1.6, 1.9]], dtype=torch.float64)
flat = gl.solve_geodesic(half_plane, start, end)
gap = (end - start).square().sum(1) / (2 * start[:, 1] * end[:, 1])
known = torch.acosh(1 + gap)
print(f"half-plane: relative errors up to {((flat.length - known) / known).abs().max():.1e}")

# %%
# The sphere by an embedding, latitude and longitude to space: the pull-back metric of a decoder
# that happens to be known.


def globe(z):
    latitude, longitude = z.unbind(1)
    x, y = latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin()
    return torch.stack([x, y, latitude.sin()], dim=1)


sphere = gl.PullbackMetric(globe)
towns = (
    torch.tensor([[55.7, 12.6], [37.8, -122.4], [35.7, 139.7], [-33.9, 18.4]]).double().deg2rad()
)
first, last = torch.combinations(torch.arange(4)).T
first, last = first[[0, 2, 4]], last[[0, 2, 4]]
round_ = gl.solve_geodesic(sphere, towns[first], towns[last])
known = (globe(towns[first]) * globe(towns[last])).sum(1).acos()
print(f"sphere: relative errors up to {((round_.length - known) / known).abs().max():.1e}")

# %%

figure = plt.figure(figsize=(10, 4.2), layout="constrained")
axes = figure.add_subplot(1, 2, 1)
t = torch.linspace(0, 1, 101, dtype=torch.float64)
for number, points in enumerate(flat.curve(t)):
    axes.plot(*points[[0, -1]].T, "--", color="0.6", label=None if number else "straight line")
    axes.plot(*points.T, lw=2, label=None if number else "geodesic", color="#d1495b")
    axes.scatter(*points[[0, -1]].T, color="black", s=18, zorder=3)
axes.set(xlabel="$z_1$", ylabel="$z_2$", ylim=(0, 2.1), aspect="equal", title="half-plane")
axes.legend(loc="upper left")

axes = figure.add_subplot(1, 2, 2, projection="3d")
u, v = torch.meshgrid(
    torch.linspace(-1.57, 1.57, 19), torch.linspace(-3.14, 3.14, 37), indexing="ij"
)
mesh = globe(torch.stack([u.flatten(), v.flatten()], 1)).reshape(19, 37, 3)
axes.plot_wireframe(*mesh.unbind(2), color="0.85", lw=0.5)
lines = gl.lerp(towns[first], towns[last], t)
for number, (line, curve) in enumerate(zip(lines, round_.curve(t), strict=True)):
    axes.plot(*globe(line).T, "--", color="0.45", label=None if number else "straight in the chart")
    axes.plot(*globe(curve).T, lw=2, color="#d1495b", label=None if number else "geodesic")
axes.scatter(*globe(towns).T, color="black", s=18)
axes.set_title("sphere")
axes.set_box_aspect((1, 1, 1), zoom=1.35)
axes.set_axis_off()
axes.view_init(50, -20)
axes.legend(loc="lower right")
plt.show()
