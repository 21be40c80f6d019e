"""The command: explore a latent space on a page in the browser."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from typing import Literal

from geolatent.checks import check_integer, requirement
from geolatent.explorer.solving import warm
from geolatent.explorer.subject import Subject
from geolatent.lab.config import DataOptions, FeatureOptions, MetricOptions, ModelOptions
from geolatent.lab.printing import make_console, print_last, working

_PORTS = 65_535


@dataclass(frozen=True, kw_only=True)
class Explore:
    """Explore a latent space on a page in the browser, served by this machine.

    Click or drag two codes in the latent plane: their straight line and their geodesic appear, with
    decoded images on the way, lengths and the certificate. Needs the extra `explore`. The page is
    for this machine alone unless another host is given; then its address holds a token, without
    which nothing is answered. End it with Ctrl-C.

    Attributes
    ----------
    model
        The model.
    data
        The images whose codes are drawn.
    source
        "data": draw the codes of the data; "prior": codes drawn from the prior, for a model without
        an encoder or data.
    metric
        How the decoder becomes a metric; the page offers the mean alone as well.
    features
        A feature map in whose output lengths can be measured; of labelled images the page offers a
        logistic regression by default.
    resolution
        Points of the background along each axis.
    seed
        Seed of the codes that are drawn, and of the random signs of Hutchinson's estimate.
    dtype
        Floating-point type of model and codes.
    device
        "auto", "cpu", "cuda" or another device of torch.
    host
        The address to listen at: "127.0.0.1" is this machine alone, "0.0.0.0" all that reach it.
    port
        The port; 0 takes a free one.
    browser
        Open the page in the browser.
    """

    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions(split="test")
    source: Literal["data", "prior"] = "data"
    metric: MetricOptions = MetricOptions()
    features: FeatureOptions = FeatureOptions()
    resolution: int = 101
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8050
    browser: bool = False

    def check(self) -> None:
        """Raise where the page could not be served."""
        check_integer("port", self.port, minimum=0)
        if self.port > _PORTS:
            raise ValueError(requirement("port", f"at most {_PORTS}", self.port))
        if not self.host.strip():
            raise ValueError(requirement("host", "a name or an address", repr(self.host)))

    def run(self) -> None:
        """Serve the page until the command is interrupted."""
        self.check()
        # before the model is loaded: it says what to install
        from geolatent.explorer.server import Server

        subject = Subject(
            model=self.model,
            data=self.data,
            metric=self.metric,
            features=self.features,
            source=self.source,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
            resolution=self.resolution,
        )
        subject.check()
        server = Server(subject, self.host, self.port)
        console = make_console()
        with working(console, "measuring the plane and a first geodesic"):
            warm(subject)
        print_last(console, f"The explorer is at {server.url}\nEnd it with Ctrl-C.")
        if self.browser:
            webbrowser.open(server.url)
        server.run()
