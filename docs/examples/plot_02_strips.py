"""
Straight lines, slerp and geodesics as images
=============================================

Three ways from one digit to another, decoded on the way. The straight line and slerp take steps of
equal length in latent space; a geodesic takes steps of equal length in the images, and as few of
them as it can.
"""

# %%
# The length of any path is that of its outputs, mean and standard deviation side by side.

import matplotlib.pyplot as plt
import torch

import geolatent as gl

vae = gl.models.digits_vae()
images, labels = gl.data.digits(split="test")
with torch.no_grad():
    codes, _ = vae.encode(images)
metric = gl.GaussianPullbackMetric(vae.decode)

start, end = codes[[3, 12, 48]], codes[[30, 7, 9]]
t = torch.linspace(0, 1, 11)
low, high = codes.amin(0) - 0.5, codes.amax(0) + 0.5
lattice = gl.LatentGraph.lattice(metric, low, high, resolution=96)
solution = gl.solve_geodesic(metric, start, end, initial=lattice)

ways = {
    "straight": lambda t: gl.lerp(start, end, t),
    "slerp": lambda t: gl.slerp(start, end, t),
    "geodesic": solution.curve,
}


def length(points):
    with torch.no_grad():
        outputs = torch.cat([each.flatten(1) for each in vae.decode(points)], dim=1)
    return (outputs[1:] - outputs[:-1]).norm(dim=1).sum()


fine = torch.linspace(0, 1, 501)
lengths = {name: [length(points) for points in way(fine)] for name, way in ways.items()}

# %%
# Rows of one pair lie together; the number is the length of the path in the output.

n_pairs, n_ways = len(start), len(ways)
heights = [1.0] * n_ways + [0.35]
figure, grid = plt.subplots(
    n_pairs * len(heights),
    len(t),
    figsize=(8.4, 0.66 * n_pairs * sum(heights)),
    height_ratios=n_pairs * heights,
    gridspec_kw={"wspace": 0.04, "hspace": 0.08, "left": 0.17, "right": 0.99, "top": 0.99},
)
for axes in grid[n_ways :: len(heights)].flat:
    axes.set_axis_off()
for pair in range(n_pairs):
    for number, (name, way) in enumerate(ways.items()):
        row = grid[pair * len(heights) + number]
        with torch.no_grad():
            frames = vae.decode_mean(way(t)[pair])
        for axes, frame in zip(row, frames, strict=True):
            axes.imshow(frame.reshape(8, 8), cmap="gray_r", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[])
        label = f"{name}, {lengths[name][pair]:.1f}"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
plt.show()
