"""Turn CLINC150 into the files that ``clinc150.toml`` reads: train.jsonl and test.jsonl.

Columns: text, label, domain.  The in-scope training and test splits only; examples are ordered by
domain, so that a stream by ``task_column = "domain"`` meets the domains in their published order.

    python examples/prepare_clinc150.py --source FOLDER   # with data_full.json and domains.json
    python examples/prepare_clinc150.py --hub             # fetched through the datasets library

Data: Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope
Prediction", licensed CC BY 3.0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# The published domains.json, for those who fetch from the hub, where there is none.
DOMAINS = {
    "banking": (
        "freeze_account routing pin_change bill_due pay_bill account_blocked interest_rate "
        "min_payment bill_balance transfer order_checks balance spending_history transactions "
        "report_fraud"
    ),
    "credit_cards": (
        "replacement_card_duration expiration_date damaged_card improve_credit_score "
        "report_lost_card card_declined credit_limit_change apr redeem_rewards credit_limit "
        "rewards_balance application_status credit_score new_card international_fees"
    ),
    "kitchen_and_dining": (
        "food_last confirm_reservation how_busy ingredients_list calories nutrition_info "
        "recipe restaurant_reviews restaurant_reservation meal_suggestion "
        "restaurant_suggestion cancel_reservation ingredient_substitution cook_time "
        "accept_reservations"
    ),
    "home": (
        "what_song play_music todo_list_update reminder reminder_update calendar_update "
        "order_status update_playlist shopping_list calendar next_song order todo_list "
        "shopping_list_update smart_home"
    ),
    "auto_and_commute": (
        "current_location oil_change_when oil_change_how uber traffic tire_pressure "
        "schedule_maintenance gas mpg distance directions last_maintenance gas_type "
        "tire_change jump_start"
    ),
    "travel": (
        "plug_type travel_notification translate flight_status international_visa timezone "
        "exchange_rate travel_suggestion travel_alert vaccines lost_luggage book_flight "
        "book_hotel carry_on car_rental"
    ),
    "utility": (
        "weather alarm date find_phone share_location timer make_call calculator definition "
        "measurement_conversion flip_coin spelling time roll_dice text"
    ),
    "work": (
        "pto_request_status next_holiday insurance_change insurance meeting_schedule payday "
        "taxes income rollover_401k pto_balance pto_request w2 schedule_meeting "
        "direct_deposit pto_used"
    ),
    "small_talk": (
        "who_made_you meaning_of_life who_do_you_work_for do_you_have_pets "
        "what_are_your_hobbies fun_fact what_is_your_name where_are_you_from goodbye "
        "thank_you greeting tell_joke are_you_a_bot how_old_are_you what_can_i_ask_you"
    ),
    "meta": (
        "change_speed user_name whisper_mode yes change_volume no change_language repeat "
        "change_accent cancel sync_device change_user_name change_ai_name reset_settings "
        "maybe"
    ),
}
SPLITS = ("train", "test")


def main() -> None:
    """Read the examples from where the arguments say, write two files."""
    arguments = _arguments()
    domains: Mapping[str, Sequence[str]]
    if arguments.hub:
        domains = {name: labels.split() for name, labels in DOMAINS.items()}
        splits = _from_hub()
    else:
        domains = json.loads((arguments.source / "domains.json").read_text())
        splits = json.loads((arguments.source / "data_full.json").read_text())
    arguments.to.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        count = write(arguments.to / f"{split}.jsonl", splits[split], domains)
        print(f"{arguments.to / split}.jsonl: {count} examples")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write CLINC150 as train.jsonl and test.jsonl.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--source", type=Path, help="folder with data_full.json and domains.json")
    where.add_argument("--hub", action="store_true", help="fetch from the Hugging Face hub")
    parser.add_argument("--to", type=Path, default=Path("data/clinc150"), help="folder to write to")
    return parser.parse_args()


def _from_hub() -> dict[str, list[tuple[str, str]]]:
    """Texts and labels by split, as data_full.json has them."""
    import datasets

    loaded = datasets.load_dataset("clinc_oos", "plus")
    names = loaded["train"].features["intent"].names
    return {
        split: [
            (row["text"], names[row["intent"]])
            for row in loaded[split]
            if names[row["intent"]] != "oos"
        ]
        for split in SPLITS
    }


def write(
    path: Path, examples: Iterable[Sequence[str]], domains: Mapping[str, Sequence[str]]
) -> int:
    """Write (text, label) pairs domain by domain; how many were written."""
    place = {label: index for index, labels in enumerate(domains.values()) for label in labels}
    names = tuple(domains)
    ordered = sorted(examples, key=lambda example: place[example[1]])
    with path.open("w", encoding="utf-8") as file:
        for text, label in ordered:
            row = {"text": text, "label": label, "domain": names[place[label]]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(ordered)


if __name__ == "__main__":
    main()
