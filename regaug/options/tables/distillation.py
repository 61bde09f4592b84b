"""Options of timm's distillation tasks; timm lists them without a heading."""

from regaug.options.option import Group, Option

DISTILLATION = Group(
    None,
    (
        Option('--kd-model-name', str, None, 'distil from this pretrained timm model (the teacher)'),
        Option(
            '--kd-distill-type',
            str,
            'logit',
            'what the student imitates: logits, features, or logits by a distillation token',
            choices=('logit', 'feature', 'token'),
        ),
        Option('--kd-loss-type', str, 'kl', 'loss of logit distillation; kl is the only one'),
        Option(
            '--distill-loss-weight',
            float,
            None,
            'weight of the distillation loss (default: 1, or the rest of --task-loss-weight)',
        ),
        Option('--task-loss-weight', float, None, 'weight of the classification loss (default: 1)'),
        Option('--kd-temperature', float, 4.0, 'softmax temperature of the distillation loss'),
        Option('--kd-student-feature-dim', int, None, "length of the student's features (default: found out)"),
        Option('--kd-teacher-feature-dim', int, None, "length of the teacher's features (default: found out)"),
        Option(
            '--kd-token-distill-type',
            str,
            'soft',
            "whether the distillation token learns the teacher's distribution or its top class",
            choices=('soft', 'hard'),
        ),
    ),
)
