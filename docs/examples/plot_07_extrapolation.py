"""
Going on beyond the ends
========================

A geodesic between two codes can be followed further. :func:`~geolatent.extrapolate` goes on where
the curve ends, at the same speed in the output; the straight line goes on at the same speed of the
codes, whatever the decoder makes of it.
"""

import matplotlib.pyplot as plt
import torch

import geolatent as gl

vae = gl.models.digits_vae()
images, labels = gl.data.digits(split="test")
with torch.no_grad():
    codes, _ = vae.encode(images)
metric = gl.GaussianPullbackMetric(vae.decode)

# %%
# Half of the way further, beyond either end. ``DiscreteGeodesic`` takes equal steps in the output;
# it also copes with decoders that have kinks.

start, end = codes[[28, 35]], codes[[79, 43]]
solution = gl.solve_geodesic(metric, start, end)
t = torch.linspace(-0.5, 1.5, 13)
fine = torch.linspace(-0.5, 1.5, 121)
shots = gl.DiscreteGeodesic(64)
geodesics = gl.extrapolate(metric, solution.curve, t, integrator=shots)
curves = gl.extrapolate(metric, solution.curve, fine, integrator=shots)
lines = gl.lerp(start, end, t)

# %%

pair = 0
figure = plt.figure(figsize=(9.6, 5.2), layout="constrained")
rows = figure.add_gridspec(3, len(t), height_ratios=[4.2, 1, 1])
plane = figure.add_subplot(rows[0, :])
plane.scatter(*codes.T, c=labels, cmap="tab10", s=5, linewidths=0)
for number in range(len(start)):
    first = number == 0
    plane.plot(*lines[number].T, "--", color="0.3", label="straight line" if first else None)
    plane.plot(*curves[number].T, color="#d1495b", lw=2, label="geodesic" if first else None)
    plane.scatter(*torch.stack([start[number], end[number]]).T, s=40, color="black", zorder=4)
plane.set(xlabel="$z_1$", ylabel="$z_2$")
plane.legend(loc="upper left")
for row, (name, points) in enumerate([("straight", lines[pair]), ("geodesic", geodesics[pair])], 1):
    with torch.no_grad():
        frames = vae.decode_mean(points)
    for column, (frame, time) in enumerate(zip(frames, t.tolist(), strict=True)):
        axes = figure.add_subplot(rows[row, column])
        axes.imshow(frame.reshape(8, 8), cmap="gray_r", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
        if column == 0:
            axes.set_ylabel(name, fontsize=9)
        if row == 2:
            axes.set_xlabel(f"{round(time, 2) + 0.0:g}", fontsize=9)
plt.show()
