"""The tasks that losses are compared on, by name."""

import images
import intents
import pose
import question_answering
import translation

TASKS = {
    task.__name__: task for family in (images, intents, translation, question_answering, pose) for task in family.TASKS
}
