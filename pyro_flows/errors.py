# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every error a user of pyro_flows can meet.

::

    PyroFlowsError(Exception)
    ├── ShapeError(ValueError)          a tensor or a layer has the wrong width
    ├── DtypeError(TypeError)           values of another dtype than the flow's parameters
    ├── ContextError(ValueError)        context missing, unexpected, or of the wrong width
    ├── OptionError(ValueError)         an option was given a value that makes no sense
    ├── UnknownFlowError(KeyError)      no flow is registered under that name
    ├── ModelError(ValueError)          the Pyro model can't be used as it is
    │   ├── NoLatentsError              nothing to infer
    │   ├── DiscreteLatentError         a discrete latent that is not enumerated
    │   ├── SubsampledLatentError       a local latent under a subsampled plate
    │   ├── ChangedModelError           other data size, sites or shapes than at setup
    │   └── InfeasibleModelError        log density not finite anywhere it was tried
    ├── DataError(ValueError)           NaN in the data, constant columns, values out of bounds
    ├── DensityError(ValueError)        an argument of a density estimator can't be used
    ├── NotFittedError(ValueError, AttributeError) an estimator is used before fit
    ├── GuideError(ValueError)          the guide can't be used here
    ├── SavedPosteriorError(ValueError) a file that is not what it should be
    ├── SavedDensityError(ValueError)   the same, of a density
    ├── CheckpointError(ValueError)     an unfinished run that this one can't go on from
    ├── NotConvergedError(RuntimeError) a numerical routine ran out of passes
    ├── DerivativeError(RuntimeError)   a derivative of higher order than there is
    └── NoRsampleError(NotImplementedError) draws of this distribution carry no gradient

Each message is a sentence: what was expected, what came, what to do.
"""


class PyroFlowsError(Exception):
    """Base of every error raised by pyro_flows on purpose."""


class ShapeError(PyroFlowsError, ValueError):
    """A tensor or a layer has the wrong width or number of dimensions."""


class DtypeError(PyroFlowsError, TypeError):
    """Values have another dtype than the parameters they meet."""


class ContextError(PyroFlowsError, ValueError):
    """Context is missing, was not expected, or has the wrong width."""


class OptionError(PyroFlowsError, ValueError):
    """An option was given a value that makes no sense, such as a mode that doesn't exist."""


class UnknownFlowError(PyroFlowsError, KeyError):
    """No flow is registered under the given name."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes, as if it were a key.
        return str(self.args[0]) if self.args else ""


class ModelError(PyroFlowsError, ValueError):
    """The Pyro model can't be used as it is."""


class NoLatentsError(ModelError, RuntimeError):
    """The model has no continuous latent variable (a RuntimeError too, as Pyro raises)."""


class DiscreteLatentError(ModelError):
    """A discrete latent site that is neither observed nor enumerated."""


class SubsampledLatentError(ModelError, NotImplementedError):
    """A latent site inside a subsampled or sequential plate."""


class ChangedModelError(ModelError):
    """The model has other sites or shapes than when the guide was set up."""


class InfeasibleModelError(ModelError):
    """The log density is not finite anywhere it was tried."""


class DataError(PyroFlowsError, ValueError):
    """The data contain values no likelihood can score, such as NaN."""


class DensityError(PyroFlowsError, ValueError):
    """An argument of a density estimator can't be used."""


class NotFittedError(PyroFlowsError, ValueError, AttributeError):
    """An estimator is used before it was fitted (the two classes are scikit-learn's custom)."""


class GuideError(PyroFlowsError, ValueError):
    """The guide can't do what was asked of it."""


class SavedPosteriorError(PyroFlowsError, ValueError):
    """A saved posterior is damaged, of another version, or of another model."""


class SavedDensityError(PyroFlowsError, ValueError):
    """A saved density is damaged, of another version, or of another flow."""


class CheckpointError(PyroFlowsError, ValueError):
    """A checkpoint is damaged, or of another run, or something else is in its place."""


class NotConvergedError(PyroFlowsError, RuntimeError):
    """A numerical routine used up its passes without reaching its tolerance."""


class DerivativeError(PyroFlowsError, RuntimeError):
    """A gradient was differentiated that can't be: the result would be wrong."""


class NoRsampleError(PyroFlowsError, NotImplementedError):
    """Draws of this distribution carry no gradient (as torch says it, a NotImplementedError)."""
