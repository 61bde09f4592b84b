"""Where the options of `tests.helpers.reach` about images, loaders, methods and reports end."""

REACH = {
    # augmentation
    'no_aug': ('size', '--no-aug', 'create_loader.train.no_aug', True),
    'train_crop_mode': ('main', '--train-crop-mode rkrc', 'create_loader.train.train_crop_mode', 'rkrc'),
    'scale': ('main', '--scale 0.2 0.9', 'create_loader.train.scale', [0.2, 0.9]),
    'ratio': ('main', '--ratio 0.5 2', 'create_loader.train.ratio', [0.5, 2.0]),
    'hflip': ('main', '--hflip 0.1', 'create_loader.train.hflip', 0.1),
    'vflip': ('main', '--vflip 0.2', 'create_loader.train.vflip', 0.2),
    'color_jitter': ('main', '--color-jitter 0.3', 'create_loader.train.color_jitter', 0.3),
    'color_jitter_prob': ('main', '--color-jitter-prob 0.4', 'create_loader.train.color_jitter_prob', 0.4),
    'grayscale_prob': ('main', '--grayscale-prob 0.5', 'create_loader.train.grayscale_prob', 0.5),
    'gaussian_blur_prob': ('main', '--gaussian-blur-prob 0.6', 'create_loader.train.gaussian_blur_prob', 0.6),
    'aa': ('main', '--aa rand-m5', 'create_loader.train.auto_augment', 'rand-m5'),
    'aug_repeats': ('ranks', '--aug-repeats 3', 'create_loader.train.num_aug_repeats', 3.0),
    'aug_splits': ('views', '', 'create_loader.train.num_aug_splits', 3),
    'train_interpolation': ('main', '--train-interpolation bilinear', 'create_loader.train.interpolation', 'bilinear'),
    'reprob': ('main', '--reprob 0.3', 'create_loader.train.re_prob', 0.3),
    'remode': ('main', '--remode const', 'create_loader.train.re_mode', 'const'),
    'recount': ('main', '--recount 2', 'create_loader.train.re_count', 2),
    'resplit': ('main', '--resplit', 'create_loader.train.re_split', True),
    'pad_crop': ('images', '--pad-crop 3', 'use_pad_crop.padding', 3),
    'pad_mode': ('images', '--pad-mode constant', 'use_pad_crop.mode', 'constant'),
    # mixing and loss
    'mixup': ('main', '--mixup 0.3', 'FastCollateMixup.mixup_alpha', 0.3),
    'cutmix': ('main', '--cutmix 0.7', 'FastCollateMixup.cutmix_alpha', 0.7),
    'cutmix_minmax': ('images', '--cutmix-minmax 0.2 0.8', 'Mixup.cutmix_minmax', [0.2, 0.8]),
    'mixup_prob': ('main', '--mixup-prob 0.6', 'FastCollateMixup.prob', 0.6),
    'mixup_switch_prob': ('main', '--mixup-switch-prob 0.4', 'FastCollateMixup.switch_prob', 0.4),
    'mixup_mode': ('main', '--mixup-mode pair', 'FastCollateMixup.mode', 'pair'),
    'mixup_off_epoch': 'tests/data/test_train_loader.py::test_mixup_off_epoch_switches_what_worker_processes_deliver',
    'smoothing': ('main', '--smoothing 0.2', 'create_classification_loss.smoothing', 0.2),
    'jsd_loss': ('views', '--jsd-loss', 'create_classification_loss.loss_type', 'jsd'),
    'bce_loss': ('binary', '', 'create_classification_loss.loss_type', 'bce'),
    'bce_sum': ('binary', '--bce-sum', 'create_classification_loss.bce_sum', True),
    'bce_target_thresh': ('binary', '--bce-target-thresh 0.3', 'create_classification_loss.bce_target_thresh', 0.3),
    'bce_pos_weight': ('binary', '--bce-pos-weight 2.5', 'create_classification_loss.pos_weight', 2.5),
    # loaders
    'seed': ('main', '--seed 7', 'random_seed.seed', 7),
    'worker_seeding': ('main', '--worker-seeding part', 'create_loader.train.worker_seeding', 'part'),
    'workers': ('main', '--workers 3', 'create_loader.train.num_workers', 3),
    'pin_mem': ('main', '--pin-mem', 'create_loader.train.pin_memory', True),
    'no_prefetcher': ('images', '', 'create_loader.train.use_prefetcher', False),
    'use_multi_epochs_loader': (
        *('main', '--use-multi-epochs-loader'),
        *('create_loader.train.use_multi_epochs_loader', True),
    ),
    'exact_resume': ('subset', '--exact-resume', 'create_loader.train.persistent_workers', False),
    'train_img_sizes': ('sizes', '--train-img-sizes 24 32', 'create_loader.train.input_size_choices', [24, 32]),
    'train_batch_sizes': ('sizes', '--train-batch-sizes 16 8', 'create_loader.train.batch_size_choices', [16, 8]),
    'train_size_probs': ('sizes', '--train-size-probs 1 3', 'create_loader.train.batch_choice_weights', [1.0, 3.0]),
    'train_size_schedule': (
        *('sizes', '--train-size-schedule progressive'),
        *('create_loader.train.batch_choice_schedule', 'progressive'),
    ),
    'train_size_schedule_spread': (
        *('sizes', '--train-size-schedule-spread 0.3'),
        *('create_loader.train.batch_schedule_spread', 0.3),
    ),
    'train_size_random_mix': (
        *('sizes', '--train-size-random-mix 0.2'),
        *('create_loader.train.batch_schedule_random_mix', 0.2),
    ),
    'train_batches_per_epoch': ('sizes', '--train-batches-per-epoch 5', 'create_loader.train.num_batches', 5),
    'variable_batch_loss_scale': (
        'tests/training/test_engine_options.py::test_gradients_of_scheduled_batches_are_weighed_by_their_size'
    ),
    'naflex_loader': ('naflex', '', 'create_naflex_loader.train.is_training', True),
    'naflex_train_seq_lens': (
        *('naflex', '--naflex-train-seq-lens 64 128'),
        *('create_naflex_loader.train.train_seq_lens', [64, 128]),
    ),
    'naflex_max_seq_len': ('naflex', '--naflex-max-seq-len 100', 'create_naflex_loader.eval.max_seq_len', 100),
    'naflex_patch_sizes': (
        *('naflex', '--naflex-patch-sizes 8 16'),
        *('create_naflex_loader.train.patch_size_choices', [8, 16]),
    ),
    'naflex_patch_size_probs': (
        *('naflex', '--naflex-patch-size-probs 1 2'),
        *('create_naflex_loader.train.patch_size_choice_probs', [1.0, 2.0]),
    ),
    'naflex_loss_scale': (
        'tests/training/test_engine_options.py::test_gradients_of_naflex_batches_are_weighed_by_their_size'
    ),
    'naflex_patchify_channels_first': (
        *('naflex', '--naflex-patchify-channels-first'),
        *('create_naflex_loader.train.patchify_channels_last', False),
    ),
    # the run and its files
    'config': 'tests/training/test_bad_input.py::test_a_mistake_in_a_configuration_file_is_the_only_line',
    'log_interval': 'tests/training/test_engine_options.py::test_every_so_many_updates_and_the_last_one_are_logged',
    'val_interval': 'tests/training/test_summary.py::test_a_run_writes_one_row_for_each_evaluated_epoch',
    'recovery_interval': (
        'tests/training/test_interrupt.py::test_recovery_checkpoints_of_an_interval_are_resumed_as_interrupted'
    ),
    'checkpoint_hist': ('main', '--checkpoint-hist 3', 'Saver.max_history', 3),
    'save_images': 'tests/training/test_report.py::test_pictures_of_training_batches_are_saved_on_demand',
    'output': ('main', '--output FOLDER/out', 'get_outdir.path', 'FOLDER/out/name'),
    'experiment': ('main', '--experiment name', 'get_outdir.path', 'FOLDER/out/name'),
    'eval_metric': ('main', '--eval-metric loss', 'Saver.decreasing', True),
    'tta': 'tests/training/test_engine_options.py::test_neighbours_of_a_batch_are_averaged_under_tta',
    'log_wandb': ('wandb', '', 'wandb.init.called', True),
    'wandb_project': ('wandb', '--wandb-project flowers', 'wandb.init.project', 'flowers'),
    'wandb_tags': ('wandb', '--wandb-tags red blue', 'wandb.init.tags', ['red', 'blue']),
    'wandb_resume_id': ('wandb', '--wandb-resume-id abc', 'wandb.init.id', 'abc'),
    'dry_run': 'tests/training/test_dry_run.py::test_two_updates_and_one_evaluation_batch_are_run',
    'max_bad_updates': (
        'tests/training/test_bad_updates.py::test_bad_losses_in_a_row_stop_the_run_and_scattered_ones_do_not'
    ),
    # GradAug
    'task': 'tests/training/test_multilabel.py::test_quadrants_are_learned_and_the_metrics_are_those_of_scikit_learn',
    'target_format': 'tests/training/test_multilabel.py::test_the_options_of_labels_reach_timms_factory',
    'multilabel_threshold': (
        'tests/training/test_multilabel_losses.py::test_the_threshold_of_the_command_line_judges_the_evaluation'
    ),
    'overwrite': (
        'tests/training/test_folder.py::test_a_used_folder_is_refused_and_overwriting_leaves_nothing_of_the_old_run'
    ),
    'updates_per_epoch': 'tests/data/test_subsets.py::test_loader_delivers_the_row_epoch_by_epoch',
    'gradaug': ('gradaug', '', 'GradAug.num_subnetworks', 3),
    'gradaug_min_width': ('gradaug', '--gradaug-min-width 0.4', 'GradAug.min_width', 0.4),
    'gradaug_width_divisor': ('gradaug', '--gradaug-width-divisor 4', 'Twin.width_divisor', 4),
    'gradaug_transforms': ('gradaug', '--gradaug-transforms rotate crop', 'GradAug.transforms', ['rotate', 'crop']),
    'gradaug_sizes': ('gradaug', '--gradaug-sizes 32 24', 'GradAug.sizes', [32, 24]),
    'gradaug_targets': ('gradaug', '--gradaug-targets hard', 'GradAug.targets', 'hard'),
    'gradaug_subnet': ('depth', '', 'DepthTwin.called', True),
    'gradaug_depth_rate': ('depth', '--gradaug-depth-rate 0.4', 'create_model.drop_path_rate', 0.4),
    'gradaug_weight': ('gradaug', '--gradaug-weight 0.3', 'GradAug.weight', 0.3),
    'gradaug_every': ('gradaug', '--gradaug-every 2', 'GradAug.every', 2),
    'gradaug_widths': ('gradaug', '--gradaug-widths uniform', 'GradAug.rule', 'uniform'),
    'gradaug_batch_share': ('gradaug', '--gradaug-batch-share 0.5', 'GradAug.batch_share', 0.5),
    'gradaug_average': ('gradaug', '--gradaug-average', 'GradAug.average', True),
    'gradaug_mask_ratio': ('gradaug', '--gradaug-mask-ratio 0.25', 'GradAug.mask_ratio', 0.25),
    'gradaug_mask_patch': ('gradaug', '--gradaug-mask-patch 8', 'GradAug.mask_patch', 8),
    'gradaug_depth_mode': ('depth', '--gradaug-depth-mode batch', 'DepthTwin.mode', 'batch'),
    # unlabelled images
    'unlabeled_split': 'tests/data/test_unlabelled.py::test_labelled_images_are_among_those_of_the_same_folder',
    'unlabeled_data_dir': 'tests/data/test_unlabelled.py::test_another_folder_has_no_known_labels',
    'unlabeled_dataset': 'tests/data/test_unlabelled.py::test_digits_are_unlabelled_images_of_other_data',
    'uratio': 'tests/methods/test_semi_training.py::test_without_weight_or_images_it_is_gradaug_bit_for_bit',
    'ulb_loss_ratio': 'tests/methods/test_semi_training.py::test_without_weight_or_images_it_is_gradaug_bit_for_bit',
    'ulb_warmup_updates': 'tests/methods/test_semi.py::test_weight_rises_linearly_to_the_ratio',
    'p_cutoff': 'tests/methods/test_semi.py::test_terms_and_gradients_equal_a_hand_written_reference',
    'ulb_teacher': 'tests/methods/test_semi.py::test_moving_average_gives_pseudo_labels_in_evaluation_mode',
    'gradaug_start_epoch': 'tests/training/test_phases.py::test_gradaug_starts_with_its_epoch',
    'gradaug_compile': ('gradaug compiled', '--gradaug-compile 4', 'GradAug.num_widths', 4),
    # MaxUp
    'maxup': ('maxup', '', 'MaxUp.num_copies', 3),
    'maxup_aug': ('maxup', '--maxup-aug cutout+cutmix+gauss', 'built.order', ['Cutout', 'CutMix', 'GaussianNoise']),
    'maxup_warmup_epochs': 'tests/training/test_phases.py::test_phases_follow_from_the_options_alone',
    'maxup_score': ('maxup', '--maxup-score excess', 'MaxUp.excess', True),
    'cutout_size': ('maxup', '--cutout-size 9', 'Cutout.size', 9),
    'gauss_sigma': ('maxup', '--gauss-sigma 0.2 --std 0.4 0.5 0.8', 'GaussianNoise.sigma', [0.5, 0.4, 0.25]),
    # UADA
    'uada': ('uada', '', 'UADA.called', True),
    'uada_groups': ('uada', '--uada-groups flip crop', 'Augmentation.groups', ['flip', 'crop']),
    'uada_ranges': ('uada', '--uada-ranges timm', 'Augmentation.ranges', 'timm'),
    'uada_delta': ('uada', '--uada-delta 2', 'UADA.delta', 2),
    'uada_epsilon': ('uada', '--uada-epsilon 3', 'UADA.epsilon', 3),
    'uada_step': ('uada', '--uada-step random', 'UADA.step', 'random'),
    # Manifold Mixup and refinement
    'manifold_mixup': ('manifold', '--manifold-mixup 0.6', 'ManifoldMixup.alpha', 0.6),
    'refine_epochs': ('refine', '--refine-epochs 2', 'Report.num_epochs', 6),
    'refine_lr': 'tests/training/test_phases.py::test_learning_rate_of_refinement',
    'refine_fade': 'tests/training/test_phases.py::test_intensity_fades_linearly_to_nothing',
    'refine_plain': 'tests/training/test_phases.py::test_gradaug_stays_on_in_refinement_unless_it_is_to_be_plain',
}
