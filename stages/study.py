"""One study: what it asks of the profile's networks and images, as its file in src/d4lens/studies says."""

from common import arguments, one_sentence, overlay, parameters, read

from d4lens import studies
from d4lens.allocator import keep_freed_memory
from d4lens.studies.study import Inputs, publish_study


@one_sentence
def main() -> None:
    keep_freed_memory()
    args = arguments(__doc__, values={"study": f"one of {', '.join(studies.STUDY_NAMES)}"})
    study = studies.load_study(args.study)
    params = parameters(args.study, study.parameters, args.profile)
    own = read(overlay(args.profile))["profile"]
    outcome, drawings = study.run(params, Inputs(args.profile, study.needs, own["arms"], own["seeds"]))
    publish_study(args.study, study.title, args.profile, outcome, drawings)
    print(*outcome.answers, sep="\n")


if __name__ == "__main__":
    main()
