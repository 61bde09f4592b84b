"""Where every option of train.py ends: what receives it, under which name, with which value. New options are rows here.

`REACH` has for each option (run, words, receiver, value): the words stand on the command line of a run, together with
those of its other options, and the receiver (a function or class and its argument, or a fact about what was built) gets
the value. An option that reaches no such place has a test, by file and name, that shows what it does.
"""

FOLDER = 'FOLDER'  # stands for a folder that has all the files named here

RUNS = {
    'main': '--model test_resnet --batch-size 24 --epochs 6',
    'positional': f'{FOLDER} --batch-size 16',
    'size': '--model test_resnet --interpolation bilinear',
    'weights': '--model test_resnet',
    'side': '--model test_resnet --drop-path 0.3 --drop-connect 0.2 --head-init-scale 0',
    'views': '--aug-splits 3',
    'binary': '--bce-loss',
    'images': '--epochs 6 --no-prefetcher',
    'sizes': '--epochs 6 --seed 7',
    'naflex': '--naflex-loader --model naflexvit_base_patch16_gap',
    'ranks': '--model test_resnet',
    'scripted': '--model test_resnet',
    'compiled': '--model-ema',
    'autocast': '',
    'dtype': '',
    'logit': '--kd-model-name resnet18',
    'feature': '--kd-model-name resnet18',
    'token': '--kd-model-name resnet18',
    'subset': '--labels-per-class 2',
    'gradaug': '--model test_resnet --gradaug 3 --seed 7',
    'depth': '--model test_efficientnet --gradaug 1 --gradaug-subnet depth',
    'gradaug compiled': '--model test_resnet --gradaug 2 --torchcompile eager --torchcompile-mode default',
    'semi': (
        '--model test_resnet --gradaug 1 --unlabeled-split train --batch-size 16 --model-ema --grad-accum-steps 2 '
        '--channels-last --model-dtype bfloat16'
    ),
    'maxup': (
        '--model test_resnet --maxup 3 --cutmix 0.7 --maxup-warmup-epochs 0 --cutmix-minmax 0.2 0.8 --mixup-prob 0.6 '
        '--smoothing 0.2 --num-classes 7 --seed 7'
    ),
    'uada': (
        '--model test_resnet --uada --pad-crop 3 --pad-mode reflect --hflip 0.2 --cutout-size 9 --seed 7 '
        '--mean 0.1 0.2 0.3 --std 0.4 0.5 0.6 --model-dtype bfloat16'
    ),
    'manifold': '--model test_resnet',
    'refine': '--epochs 4 --warmup-epochs 0',
    'wandb': '--log-wandb',
}

REACH = {
    # distillation
    'kd_model_name': ('logit', '', 'LogitDistillation.teacher_model', 'resnet18'),
    'kd_distill_type': ('feature', '--kd-distill-type feature', 'FeatureDistillation.teacher_model', 'resnet18'),
    'kd_loss_type': ('logit', '--kd-loss-type kl', 'LogitDistillation.loss_type', 'kl'),  # there is no other
    'distill_loss_weight': ('logit', '--distill-loss-weight 0.3', 'LogitDistillation.distill_loss_weight', 0.3),
    'task_loss_weight': ('logit', '--task-loss-weight 0.6', 'LogitDistillation.task_loss_weight', 0.6),
    'kd_temperature': ('logit', '--kd-temperature 2', 'LogitDistillation.temperature', 2.0),
    'kd_student_feature_dim': ('feature', '--kd-student-feature-dim 9', 'FeatureDistillation.student_feature_dim', 9),
    'kd_teacher_feature_dim': ('feature', '--kd-teacher-feature-dim 8', 'FeatureDistillation.teacher_feature_dim', 8),
    'kd_token_distill_type': (
        *('token', '--kd-distill-type token --kd-token-distill-type hard'),
        *('TokenDistillation.distill_type', 'hard'),
    ),
    # data sets
    'data': ('positional', '', 'create_dataset.train.root', f'{FOLDER}/train'),
    'data_dir': ('main', f'--data-dir {FOLDER}', 'create_dataset.train.root', FOLDER),
    'dataset': ('main', '--dataset torch/cifar10', 'create_dataset.train.name', 'torch/cifar10'),
    'train_split': ('main', '--train-split training', 'create_dataset.train.split', 'training'),
    'val_split': ('main', '--val-split test', 'create_dataset.eval.split', 'test'),
    'train_num_samples': ('main', '--train-num-samples 48', 'create_dataset.train.num_samples', 48),
    'val_num_samples': ('main', '--val-num-samples 12', 'create_dataset.eval.num_samples', 12),
    'dataset_download': ('main', '--dataset-download', 'create_dataset.train.download', True),
    'class_map': ('positional', f'--class-map {FOLDER}/map.txt', 'create_dataset.train.class_map', f'{FOLDER}/map.txt'),
    'input_img_mode': ('main', '--input-img-mode YCbCr', 'create_dataset.train.input_img_mode', 'YCbCr'),
    'input_key': ('main', '--input-key picture', 'create_dataset.train.input_key', 'picture'),
    'target_key': ('main', '--target-key kind', 'create_dataset.train.target_key', 'kind'),
    'dataset_trust_remote_code': (
        *('main', '--dataset-trust-remote-code'),
        *('create_dataset.train.trust_remote_code', True),
    ),
    'epoch_repeats': ('main', '--epoch-repeats 2', 'create_dataset.train.repeats', 2.0),
    'labels_per_class': ('subset', '', 'training_samples.labels_per_class', 2),
    'label_split': ('subset', '--label-split 4', 'training_samples.label_split', 4),
    # model
    'model': ('main', '', 'create_model.model_name', 'test_resnet'),
    'pretrained': ('weights', '--pretrained', 'create_model.pretrained', True),
    'pretrained_path': (
        *('weights', f'--pretrained-path {FOLDER}/weights.pth'),
        *('create_model.pretrained_cfg_overlay.file', f'{FOLDER}/weights.pth'),
    ),
    'initial_checkpoint': (
        'tests/training/test_initial_weights.py::test_a_classifier_that_fits_is_loaded_without_a_word_about_it'
    ),
    'resume': 'tests/training/test_resume.py::test_exactly_resumed_runs_equal_the_uninterrupted_one_bit_for_bit',
    'no_resume_opt': 'tests/training/test_refinement.py::test_optimiser_state_and_moving_average_carry_over',
    'num_classes': ('main', '--num-classes 7', 'create_model.num_classes', 7),
    'gp': ('main', '--gp max', 'create_model.global_pool', 'max'),
    'img_size': ('side', '--img-size 48', 'create_loader.train.input_size', (1, 48, 48)),
    'in_chans': ('side', '--in-chans 1', 'create_model.in_chans', 1),
    'input_size': ('size', '--input-size 1 24 40', 'create_loader.train.input_size', (1, 24, 40)),
    'crop_pct': ('main', '--crop-pct 0.8', 'create_loader.eval.crop_pct', 0.8),
    'mean': ('main', '--mean 0.1 0.2 0.3', 'create_loader.train.mean', (0.1, 0.2, 0.3)),
    'std': ('main', '--std 0.4 0.5 0.6', 'create_loader.train.std', (0.4, 0.5, 0.6)),
    'interpolation': ('main', '--interpolation bicubic', 'create_loader.eval.interpolation', 'bicubic'),
    'batch_size': ('main', '', 'create_loader.train.batch_size', 24),
    'validation_batch_size': ('main', '--validation-batch-size 12', 'create_loader.eval.batch_size', 12),
    'channels_last': ('main', '--channels-last', 'model.channels_last', True),
    'fuser': ('main', '--fuser te', 'set_jit_fuser.fuser', 'te'),
    'grad_accum_steps': (
        'tests/training/test_engine.py::test_epochs_equal_a_bare_loop_over_timms_task_bit_for_bit'  # accumulation
    ),
    'grad_checkpointing': ('main', '--grad-checkpointing', 'model.grad_checkpointing', True),
    'fast_norm': ('main', '--fast-norm', 'set_fast_norm.enable', True),
    'model_kwargs': ('main', '--model-kwargs stem_width=40', 'create_model.stem_width', 40),
    'head_init_scale': ('main', '--head-init-scale 1e-30', 'model.head_weight', 0.0),
    'head_init_bias': ('main', '--head-init-bias 0.5', 'model.head_bias', 0.5),
    'torchcompile_mode': ('compiled', '--torchcompile-mode default', 'compile.mode', 'default'),
    'torchscript': ('scripted', '--torchscript', 'script.called', True),
    'torchcompile': ('compiled', '--torchcompile eager', 'compile.backend', 'eager'),
    'drop': ('main', '--drop 0.1', 'create_model.drop_rate', 0.1),
    'drop_connect': ('size', '--drop-connect 0.2', 'create_model.drop_path_rate', 0.2),
    'drop_path': ('main', '--drop-path 0.3', 'create_model.drop_path_rate', 0.3),
    'drop_block': ('main', '--drop-block 0.4', 'create_model.drop_block_rate', 0.4),
    'bn_momentum': ('main', '--bn-momentum 0.2', 'create_model.bn_momentum', 0.2),
    'bn_eps': ('main', '--bn-eps 0.01', 'create_model.bn_eps', 0.01),
    'sync_bn': ('ranks', '--sync-bn', 'convert_sync_batchnorm.called', True),
    'dist_bn': 'tests/training/test_distributed.py::test_ranks_share_their_batch_norm_statistics_as_the_option_says',
    'split_bn': ('views', '--split-bn', 'convert_splitbn_model.num_splits', 3),
    'freeze_bn': 'tests/training/test_freeze_bn.py::test_frozen_batch_norm_stays_and_everything_else_trains',
    'model_ema': ('main', '--model-ema', 'setup_ema.called', True),
    'model_ema_force_cpu': ('main', '--model-ema-force-cpu', 'setup_ema.device', 'cpu'),
    'model_ema_decay': ('main', '--model-ema-decay 0.9', 'setup_ema.decay', 0.9),
    'model_ema_warmup': ('main', '--model-ema-warmup', 'setup_ema.use_warmup', True),
    # device and number formats
    'device': ('main', '', 'create_loader.train.device', 'cpu'),
    'amp': ('autocast', '--amp', 'autocast.enabled', True),
    'amp_dtype': ('autocast', '--amp-dtype bfloat16', 'autocast.dtype', 'torch.bfloat16'),
    'model_dtype': ('dtype', '--model-dtype bfloat16', 'create_loader.train.img_dtype', 'torch.bfloat16'),
    'no_ddp_bb': ('ranks', '--no-ddp-bb', 'prepare_distributed.broadcast_buffers', False),
    'synchronize_step': (
        'tests/training/test_engine_options.py::test_the_device_is_waited_for_after_each_update_on_demand'
    ),
    'local_rank': 'tests/training/test_option_reach.py::test_the_rank_on_a_machine_is_what_torchrun_says',
    'device_modules': ('main', '--device-modules colorsys', 'import.colorsys', True),
    # optimiser
    'opt': ('main', '--opt adamw', 'create_optimizer.opt', 'adamw'),
    'opt_eps': ('main', '--opt-eps 1e-5', 'create_optimizer.eps', 1e-5),
    'opt_betas': ('main', '--opt-betas 0.8 0.9', 'create_optimizer.betas', [0.8, 0.9]),
    'momentum': ('main', '--momentum 0.7', 'create_optimizer.momentum', 0.7),
    'weight_decay': ('main', '--weight-decay 0.03', 'create_optimizer.weight_decay', 0.03),
    'clip_grad': ('main', '--clip-grad 0.5', 'Updater.clip_grad', 0.5),
    'clip_mode': ('main', '--clip-mode agc', 'Updater.clip_mode', 'agc'),
    'layer_decay': ('main', '--layer-decay 0.6', 'create_optimizer.layer_decay', 0.6),
    'layer_decay_min_scale': ('main', '--layer-decay-min-scale 0.01', 'create_optimizer.layer_decay_min_scale', 0.01),
    'layer_decay_no_opt_scale': (
        *('main', '--layer-decay-no-opt-scale 0.02'),
        *('create_optimizer.layer_decay_no_opt_scale', 0.02),
    ),
    'opt_kwargs': ('main', '--opt-kwargs amsgrad=True', 'create_optimizer.amsgrad', True),
    # schedule
    'sched': ('main', '--sched tanh', 'create_scheduler.sched', 'tanh'),
    'sched_on_updates': ('main', '--sched-on-updates', 'create_scheduler.step_on_epochs', False),
    'lr': ('main', '--lr 0.03', 'create_optimizer.lr', 0.03),
    'lr_base': 'tests/training/test_updates.py::test_the_learning_rate_grows_with_the_global_batch',
    'lr_base_size': 'tests/training/test_updates.py::test_the_learning_rate_grows_with_the_global_batch',
    'lr_base_scale': 'tests/training/test_updates.py::test_the_learning_rate_grows_with_the_global_batch',
    'lr_noise': ('main', '--lr-noise 0.2 0.6', 'create_scheduler.noise', [0.2, 0.6]),
    'lr_noise_pct': ('main', '--lr-noise-pct 0.3', 'create_scheduler.noise_pct', 0.3),
    'lr_noise_std': ('main', '--lr-noise-std 0.5', 'create_scheduler.noise_std', 0.5),
    'lr_cycle_mul': ('main', '--lr-cycle-mul 2', 'create_scheduler.cycle_mul', 2.0),
    'lr_cycle_decay': ('main', '--lr-cycle-decay 0.3', 'create_scheduler.cycle_decay', 0.3),
    'lr_cycle_limit': ('main', '--lr-cycle-limit 2', 'create_scheduler.cycle_limit', 2),
    'lr_k_decay': ('main', '--lr-k-decay 0.8', 'create_scheduler.k_decay', 0.8),
    'warmup_lr': ('main', '--warmup-lr 1e-4', 'create_scheduler.warmup_lr', 1e-4),
    'min_lr': ('main', '--min-lr 1e-5', 'create_scheduler.min_lr', 1e-5),
    'epochs': ('main', '', 'create_scheduler.num_epochs', 6),
    'start_epoch': 'tests/training/test_dry_run.py::test_estimate_is_that_of_all_updates_and_evaluations',
    'decay_milestones': ('main', '--decay-milestones 2 4', 'create_scheduler.decay_milestones', [2, 4]),
    'decay_epochs': ('main', '--decay-epochs 3', 'create_scheduler.decay_epochs', 3.0),
    'warmup_epochs': ('main', '--warmup-epochs 2', 'create_scheduler.warmup_epochs', 2),
    'warmup_prefix': ('main', '--warmup-prefix', 'create_scheduler.warmup_prefix', True),
    'cooldown_epochs': ('main', '--cooldown-epochs 1', 'create_scheduler.cooldown_epochs', 1),
    'patience_epochs': ('main', '--patience-epochs 3', 'create_scheduler.patience_epochs', 3),
    'decay_rate': ('main', '--decay-rate 0.3', 'create_scheduler.decay_rate', 0.3),
}
