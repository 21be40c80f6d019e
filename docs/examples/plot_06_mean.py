"""
Means and principal directions
==============================

The Fréchet mean of some codes has the least sum of squared geodesic distances to them. From it,
logarithms say in which directions the codes lie and how far, their principal components are the
main directions of change, and the exponential map follows a direction as far as one likes.
"""

# %%
# Codes of one digit, and their mean.

import matplotlib.pyplot as plt
import torch

import geolatent as gl

vae = gl.models.digits_vae()
images, labels = gl.data.digits(split="train")
with torch.no_grad():
    codes, _ = vae.encode(images)
metric = gl.GaussianPullbackMetric(vae.decode)
threes = codes[labels == 3][:40]

found = gl.frechet_mean(metric, threes)
mean = found.mean
print("geodesic mean ", mean.numpy().round(3))
print("Euclidean mean", threes.mean(0).numpy().round(3))

# %%
# Logarithms are tangent vectors at the mean. With the metric's root they have its lengths, so that
# plain principal components are those of geodesic distance.

shots = gl.DiscreteGeodesic(64)
logarithms = gl.log_map(metric, mean.expand_as(threes), threes, integrator=shots)
known = logarithms[logarithms.isfinite().all(1)].double()
G = metric.tensor(mean[None])[0].double()
root = torch.linalg.cholesky(G)
_, spread, axes_of_change = torch.linalg.svd(known @ root, full_matrices=False)
spread = spread / len(known) ** 0.5
directions = torch.linalg.solve(root.T, axes_of_change.T).T  # of unit length in the metric
print("standard deviations along the principal directions:", spread.numpy().round(2))

# %%
# Two standard deviations either way along each direction.

steps = torch.linspace(0, 2, 5)
branches = []
for direction, width in zip(directions, spread, strict=True):
    velocity = (width * direction).to(mean)
    both = torch.stack([-velocity, velocity])
    ways = gl.shoot(metric, mean.expand(2, 2), both, steps, integrator=shots).points
    branches.append(torch.cat([ways[0].flip(0), ways[1, 1:]]))

figure = plt.figure(figsize=(9, 5.4), layout="constrained")
rows = figure.add_gridspec(3, 9, height_ratios=[4.2, 1, 1])
plane = figure.add_subplot(rows[0, :])
plane.scatter(*codes.T, s=3, color="0.85", linewidths=0)
plane.scatter(*threes.T, s=12, color="#0072b2", label="codes of threes")
for number, branch in enumerate(branches):
    label = "principal geodesics" if number == 0 else None
    plane.plot(*branch.T, "o-", ms=3, lw=2, color="#d55e00", label=label)
plane.scatter(*mean, s=90, marker="*", color="black", zorder=4, label="mean")
plane.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-0.7, 1.9), ylim=(0.2, 1.8))
plane.legend(loc="upper left")
for row, branch in enumerate(branches, start=1):
    with torch.no_grad():
        frames = vae.decode_mean(branch)
    for column, frame in enumerate(frames):
        axes = figure.add_subplot(rows[row, column])
        axes.imshow(frame.reshape(8, 8), cmap="gray_r", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
        if row == len(branches):
            axes.set_xlabel(f"{(column - 4) / 2:+.1f} sd", fontsize=8)
        if column == 0:
            axes.set_ylabel(f"direction {row}", fontsize=8)
plt.show()
