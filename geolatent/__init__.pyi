# The public names, each with the module that it is imported from: what type checkers see, and
# what `__init__.py` reads. `as` makes a name public.
from geolatent import adapters as adapters
from geolatent import models as models
from geolatent._version import __version__ as __version__
from geolatent.curves import CubicBSpline as CubicBSpline
from geolatent.geometry.acceleration import geodesic_residual as geodesic_residual
from geolatent.geometry.brownian import brownian_motion as brownian_motion
from geolatent.geometry.curvature import gaussian_curvature as gaussian_curvature
from geolatent.geometry.curvature import sectional_curvature as sectional_curvature
from geolatent.geometry.distances import distance as distance
from geolatent.geometry.distances import graph_distances as graph_distances
from geolatent.geometry.distances import pairwise_distances as pairwise_distances
from geolatent.geometry.exponential import Trajectory as Trajectory
from geolatent.geometry.exponential import exp_map as exp_map
from geolatent.geometry.exponential import shoot as shoot
from geolatent.geometry.extrapolation import extrapolate as extrapolate
from geolatent.geometry.integrators import DiscreteGeodesic as DiscreteGeodesic
from geolatent.geometry.integrators import Integrator as Integrator
from geolatent.geometry.integrators import RungeKutta as RungeKutta
from geolatent.geometry.lyapunov import LyapunovExponents as LyapunovExponents
from geolatent.geometry.lyapunov import lyapunov_exponents as lyapunov_exponents
from geolatent.geometry.means import FrechetMean as FrechetMean
from geolatent.geometry.means import frechet_mean as frechet_mean
from geolatent.geometry.ode import TrajectoryStatus as TrajectoryStatus
from geolatent.geometry.shooting import Shooting as Shooting
from geolatent.geometry.shooting import log_map as log_map
from geolatent.geometry.shooting import shoot_to as shoot_to
from geolatent.geometry.transport import parallel_transport as parallel_transport
from geolatent.geometry.volume import condition_number as condition_number
from geolatent.geometry.volume import log_magnification_factor as log_magnification_factor
from geolatent.geometry.volume import magnification_factor as magnification_factor
from geolatent.geometry.volume import principal_directions as principal_directions
from geolatent.geometry.volume import sample_volume as sample_volume
from geolatent.graph import LatentGraph as LatentGraph
from geolatent.graph_files import load_graph as load_graph
from geolatent.graph_files import save_graph as save_graph
from geolatent.interpolations import great_circle as great_circle
from geolatent.interpolations import lerp as lerp
from geolatent.interpolations import radial_walk as radial_walk
from geolatent.interpolations import slerp as slerp
from geolatent.interpolations import spherical_spiral as spherical_spiral
from geolatent.interpolations import through_points as through_points
from geolatent.lab import data as data
from geolatent.learn.kmeans import GeodesicKMeans as GeodesicKMeans
from geolatent.learn.land import LandMixture as LandMixture
from geolatent.learn.neighbors import GeodesicKNeighborsClassifier as GeodesicKNeighborsClassifier
from geolatent.learn.neighbors import GeodesicKNeighborsTransformer as GeodesicKNeighborsTransformer
from geolatent.lengths import path_energy as path_energy
from geolatent.lengths import path_length as path_length
from geolatent.metrics.base import Metric as Metric
from geolatent.metrics.by_differences import by_differences as by_differences
from geolatent.metrics.composite import ConformalMetric as ConformalMetric
from geolatent.metrics.composite import EnsembleMetric as EnsembleMetric
from geolatent.metrics.composite import LocalVarianceMetric as LocalVarianceMetric
from geolatent.metrics.counts import (
    NegativeBinomialFisherRaoMetric as NegativeBinomialFisherRaoMetric,
)
from geolatent.metrics.counts import (
    NegativeBinomialPullbackMetric as NegativeBinomialPullbackMetric,
)
from geolatent.metrics.counts import PoissonPullbackMetric as PoissonPullbackMetric
from geolatent.metrics.counts import (
    ZeroInflatedNegativeBinomialMetric as ZeroInflatedNegativeBinomialMetric,
)
from geolatent.metrics.information import BernoulliPullbackMetric as BernoulliPullbackMetric
from geolatent.metrics.information import BetaFisherRaoMetric as BetaFisherRaoMetric
from geolatent.metrics.information import CategoricalPullbackMetric as CategoricalPullbackMetric
from geolatent.metrics.information import DivergenceMetric as DivergenceMetric
from geolatent.metrics.information import GammaFisherRaoMetric as GammaFisherRaoMetric
from geolatent.metrics.information import GaussianFisherRaoMetric as GaussianFisherRaoMetric
from geolatent.metrics.pullback import GaussianPullbackMetric as GaussianPullbackMetric
from geolatent.metrics.pullback import PullbackMetric as PullbackMetric
from geolatent.metrics.sphere import SphereMetric as SphereMetric
from geolatent.metrics.tensor import TensorMetric as TensorMetric
from geolatent.priors import log_prior as log_prior
from geolatent.priors import norm_profile as norm_profile
from geolatent.solution import Evaluations as Evaluations
from geolatent.solution import GeodesicSolution as GeodesicSolution
from geolatent.solution import Status as Status
from geolatent.solve import solve_geodesic as solve_geodesic
from geolatent.solvers.first_order import FirstOrderSolver as FirstOrderSolver
from geolatent.solvers.georce import GEORCESolver as GEORCESolver
from geolatent.solvers.lbfgs import LBFGS as LBFGS
from geolatent.solvers.preconditioned import PreconditionedSolver as PreconditionedSolver
from geolatent.solvers.problem import Progress as Progress
from geolatent.solvers.problem import Solver as Solver
