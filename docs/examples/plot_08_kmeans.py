"""
k-means under the metric
========================

Clusters of codes by Euclidean distance and by geodesic distance. The Euclidean one cuts the plane
by straight borders; the geodesic one knows where the decoder changes fast, which is between the
classes. The adjusted Rand index says how well clusters and digits agree; the model has seen no
labels.
"""

# %%
# A graph of codes gives the distances, at one decoder row a node.

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

import geolatent as gl

vae = gl.models.digits_vae()
images, labels = gl.data.digits(split="train")
with torch.no_grad():
    codes, _ = vae.encode(images)
metric = gl.GaussianPullbackMetric(vae.decode)
graph = gl.LatentGraph.from_codes(metric, codes, n_nodes=4_000)

clusters = {
    "Euclidean": KMeans(10, n_init=5, random_state=0).fit_predict(codes.numpy()),
    "geodesic": gl.GeodesicKMeans(metric, 10, graph=graph, random_state=0).fit_predict(codes),
}

# %%
# Clusters have no names; each gets the colour of the digit that it shares most codes with.


def as_digits(found):
    shared = contingency_matrix(found, labels)
    _, digit = linear_sum_assignment(shared, maximize=True)
    return digit[found]


figure, panels = plt.subplots(1, 3, figsize=(11, 4), sharex=True, sharey=True, layout="constrained")
shown = {"digits": labels.numpy(), **{name: as_digits(each) for name, each in clusters.items()}}
for axes, (name, colours) in zip(panels, shown.items(), strict=True):
    axes.scatter(*codes.T, c=colours, cmap="tab10", s=6, linewidths=0)
    score = "" if name == "digits" else f", index {adjusted_rand_score(labels, colours):.2f}"
    axes.set(title=f"{name}{score}", xlabel="$z_1$")
panels[0].set_ylabel("$z_2$")
plt.show()
