"""What a composed config may say: types, ranges, closed sets of names. Validation reports every problem at once."""

from nora.runs.schema.deployment import DeploymentSpec as DeploymentSpec
from nora.runs.schema.dreambooth import DreamboothProtocol as DreamboothProtocol
from nora.runs.schema.dreambooth import DreamboothSpec as DreamboothSpec
from nora.runs.schema.dreambooth import EncoderSpec as EncoderSpec
from nora.runs.schema.dreambooth import SubjectSpec as SubjectSpec
from nora.runs.schema.execution import ExecSpec as ExecSpec
from nora.runs.schema.factorize import FactorizeSpec as FactorizeSpec
from nora.runs.schema.factorize import ProblemSpec as ProblemSpec
from nora.runs.schema.factorize import SolverSpec as SolverSpec
from nora.runs.schema.factorize import StartSpec as StartSpec
from nora.runs.schema.fields import Count as Count
from nora.runs.schema.fields import Positive as Positive
from nora.runs.schema.fields import Size as Size
from nora.runs.schema.finetune import FewShotProtocol as FewShotProtocol
from nora.runs.schema.finetune import FinetuneSpec as FinetuneSpec
from nora.runs.schema.finetune import InstructProtocol as InstructProtocol
from nora.runs.schema.finetune import TaskSpec as TaskSpec
from nora.runs.schema.kinds import KINDS as KINDS
from nora.runs.schema.kinds import Spec as Spec
from nora.runs.schema.method import MethodSpec as MethodSpec
from nora.runs.schema.model import ModelSpec as ModelSpec
from nora.runs.schema.validation import unknown_key as unknown_key
from nora.runs.schema.validation import validate as validate
