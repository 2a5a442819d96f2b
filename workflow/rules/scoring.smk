rule train_extractor:
    """Train the classifier whose features score the images of a data set."""
    input:
        LAYOUT.dataset_record(),
    output:
        network=LAYOUT.extractor(),
        record=LAYOUT.extractor(suffix=".json"),
    log:
        LAYOUT.log("train_extractor/{dataset}"),
    benchmark:
        LAYOUT.benchmark("train_extractor/{dataset}")
    conda:
        "../../envs/udpm.yaml"
    threads: 2
    resources:
        **JOBS.cpus(2),
    params:
        usage=LAYOUT.usage("train_extractor/{dataset}"),
        dataset=subpath(input[0], parent=True),
    shell:
        "udpm --usage {params.usage:q} extractor --threads 2 --output {output.network:q} -- {params.dataset:q} > {log:q} 2>&1"


# Local rules, since compute nodes seldom have a network. An existing file is only checked. One rule for each folder, not
# a wildcard: a path in the name of a log could lead out of the folder of logs.
for number, (weights, arguments) in enumerate(INPUTS.extractor_weights().items(), 1):

    rule:
        name:
            f"{content.FETCH}{number}"
        output:
            weights,
        log:
            LAYOUT.log(f"fetch_extractor/{number}"),
        localrule: True
        conda:
            "../../envs/udpm.yaml"
        params:
            folder=subpath(output[0], parent=True),
            arguments=lambda wildcards, arguments=arguments: arguments,
        shell:
            "udpm fetch {params.arguments:q} --folder {params.folder:q} > {log:q} 2>&1"


rule compute_reference:
    """Compute the statistics of real images that samples are scored against."""
    input:
        dataset=INPUTS.dataset_record,
        config=LAYOUT.section("scoring", extractor=EXTRACTOR),
        extractor=INPUTS.made_extractor,
    output:
        LAYOUT.reference(extractor=EXTRACTOR),
    log:
        LAYOUT.log("compute_reference/{experiment}{extractor}"),
    benchmark:
        LAYOUT.benchmark("compute_reference/{experiment}{extractor}")
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_scored),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.scoring_threads
    resources:
        **JOBS.scoring,
    params:
        usage=LAYOUT.usage("compute_reference/{experiment}{extractor}"),
        dataset=subpath(input.dataset, parent=True),
        extractor=INPUTS.extractor,
        features=LAYOUT.features,
    shell:
        "udpm --usage {params.usage:q} reference --extractor {params.extractor:q} --config {input.config:q}"
        " --features {params.features:q} --output {output:q} -- {params.dataset:q} > {log:q} 2>&1"


ruleorder: import_reference > compute_reference


rule import_reference:
    """Import published statistics (`scoring.reference`)."""
    input:
        statistics=lambda wildcards: PLAN.experiment(wildcards).scoring.reference,
        config=LAYOUT.section("scoring"),
        extractor=INPUTS.made_extractor,
    output:
        LAYOUT.reference(),
    log:
        LAYOUT.log("import_reference/{experiment}"),
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.has_published_reference),
    conda:
        "../../envs/udpm.yaml"
    params:
        extractor=INPUTS.extractor,
    shell:
        "udpm reference --import --extractor {params.extractor:q} --config {input.config:q}"
        " --output {output:q} -- {input.statistics:q} > {log:q} 2>&1"


rule score_samples:
    """Score the samples of a run."""
    input:
        samples=INPUTS.samples,
        reference=INPUTS.reference,
        dataset=INPUTS.dataset_record,
        config=INPUTS.scoring,
        extractor=INPUTS.made_extractor,
    output:
        LAYOUT.scores("seed{seed}", extractor=EXTRACTOR),
    log:
        LAYOUT.log("score_samples/{experiment}_seed{seed}{extractor}"),
    benchmark:
        LAYOUT.benchmark("score_samples/{experiment}_seed{seed}{extractor}")
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_scored),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.scoring_threads
    resources:
        **JOBS.scoring,
    params:
        usage=LAYOUT.usage("score_samples/{experiment}_seed{seed}{extractor}"),
        samples=INPUTS.sample_set,
        dataset=subpath(input.dataset, parent=True),
        extractor=INPUTS.extractor,
        features=LAYOUT.features,
        extra=lambda wildcards: ["--samples", INPUTS.sample_set(wildcards)],
    shell:
        "udpm --usage {params.usage:q} score {params.extra:q} --reference {input.reference:q} --extractor {params.extractor:q}"
        " --dataset {params.dataset:q} --config {input.config:q} --features {params.features:q}"
        " --output {output:q} > {log:q} 2>&1"


use rule score_samples as score_milestone with:
    input:
        samples=LAYOUT.milestone_samples(".npz"),
        record=LAYOUT.milestone_samples(".json"),
        reference=LAYOUT.reference(),
        dataset=INPUTS.dataset_record,
        config=LAYOUT.section("selection_scoring"),
        extractor=INPUTS.made_extractor,
    output:
        LAYOUT.milestone_scores(),
    log:
        LAYOUT.log("score_milestone/{experiment}_seed{seed}_{iteration}"),
    benchmark:
        LAYOUT.benchmark("score_milestone/{experiment}_seed{seed}_{iteration}")
    params:
        usage=LAYOUT.usage("score_milestone/{experiment}_seed{seed}_{iteration}"),
        samples=None,
        extra=lambda wildcards, input: ["--samples", input.samples],


use rule score_samples as score_best with:
    input:
        samples=LAYOUT.samples("_best.npz"),
        record=LAYOUT.samples("_best.json"),
        selection=LAYOUT.choice(),
        reference=LAYOUT.reference(extractor=EXTRACTOR),
        dataset=INPUTS.dataset_record,
        config=LAYOUT.section("scoring", extractor=EXTRACTOR),
        extractor=INPUTS.made_extractor,
    output:
        LAYOUT.scores("seed{seed}_best", extractor=EXTRACTOR),
    log:
        LAYOUT.log("score_best/{experiment}_seed{seed}{extractor}"),
    benchmark:
        LAYOUT.benchmark("score_best/{experiment}_seed{seed}{extractor}")
    params:
        usage=LAYOUT.usage("score_best/{experiment}_seed{seed}{extractor}"),
        samples=None,
        extra=lambda wildcards, input: ["--samples", input.samples, "--selection", input.selection],


rule score_baseline:
    """Score the baselines: real images that training never saw (floor), or noise (ceiling)."""
    input:
        reference=LAYOUT.reference(extractor=EXTRACTOR),
        dataset=INPUTS.dataset_record,
        config=LAYOUT.section("scoring", extractor=EXTRACTOR),
        extractor=INPUTS.made_extractor,
    output:
        LAYOUT.scores("{baseline}", extractor=EXTRACTOR),
    log:
        LAYOUT.log("score_baseline/{experiment}_{baseline}{extractor}"),
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_scored),
        baseline="|".join(BASELINES),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.scoring_threads
    resources:
        **JOBS.scoring,
    params:
        dataset=subpath(input.dataset, parent=True),
        extractor=INPUTS.extractor,
        features=LAYOUT.features,
        subject=INPUTS.baseline,
    shell:
        "udpm score {params.subject:q} --reference {input.reference:q} --extractor {params.extractor:q}"
        " --dataset {params.dataset:q} --config {input.config:q} --features {params.features:q}"
        " --output {output:q} > {log:q} 2>&1"


rule diagnose_run:
    """Find where a run loses quality and variety, by level, on held-out images."""
    input:
        weights=INPUTS.weights,
        reference=INPUTS.reference,
        dataset=INPUTS.dataset_record,
        config=INPUTS.scoring,
        extractor=INPUTS.made_extractor,
    output:
        diagnosis=LAYOUT.diagnosis(),
        table=report(
            f"{LAYOUT.table('diagnoses/{experiment}_seed{seed}')}.html",
            caption="../report/diagnosis.rst",
            category="2 Scores",
            labels={"table": "diagnosis of {experiment}, seed {seed}"},
        ),
        others=multiext(LAYOUT.table("diagnoses/{experiment}_seed{seed}"), ".csv", ".md", ".tex"),
    log:
        LAYOUT.log("diagnose_run/{experiment}_seed{seed}"),
    benchmark:
        LAYOUT.benchmark("diagnose_run/{experiment}_seed{seed}")
    wildcard_constraints:
        experiment=PLAN.pattern(PLAN.is_scored),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.sampling_threads
    resources:
        **JOBS.figures,
    params:
        usage=LAYOUT.usage("diagnose_run/{experiment}_seed{seed}"),
        run=subpath(input.weights, parent=True),
        dataset=subpath(input.dataset, parent=True),
        extractor=INPUTS.extractor,
        features=LAYOUT.features,
        options=INPUTS.diagnosis_options,
        stem=subpath(output.table, strip_suffix=".html"),
    shell:
        "udpm --usage {params.usage:q} diagnose {params.options:q} --reference {input.reference:q}"
        " --extractor {params.extractor:q} --dataset {params.dataset:q} --config {input.config:q}"
        " --features {params.features:q} --output {output.diagnosis:q} --table {params.stem:q} -- {params.run:q}"
        " > {log:q} 2>&1"


rule select_checkpoint:
    """Choose the milestone of least Fréchet distance of a run."""
    input:
        INPUTS.milestone_scores,
    output:
        choice=LAYOUT.choice(),
        table=report(
            f"{LAYOUT.selection()}/milestones.html",
            caption="../report/selection.rst",
            category="2 Scores",
            labels={"table": "milestones of {experiment}, seed {seed}"},
        ),
        others=multiext(f"{LAYOUT.selection()}/milestones", ".csv", ".md", ".tex"),
    log:
        LAYOUT.log("select_checkpoint/{experiment}_seed{seed}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output.table, strip_suffix=".html"),
    shell:
        "udpm select --output {output.choice:q} --table {params.stem:q} -- {input:q} > {log:q} 2>&1"
