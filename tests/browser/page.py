"""Looks at the emulator's page as a person would. Arguments: chromedriver, chromium, the page's address.

Prints a line when the test (tests/it/emulator_page.rs) has to do its part, and reads a line when that is done.
With C2D_PAGE_PICTURES=DIR it leaves pictures there.
"""

import os
import sys

from webdriver import ENTER, TAB, Browser

chromedriver, chromium, address = sys.argv[1:]
origin = address.split("/#")[0]


def ask(what):
    print(what, flush=True)
    assert sys.stdin.readline().strip() == "done"


def picture(browser, name):
    if "C2D_PAGE_PICTURES" in os.environ:
        browser.picture(os.path.join(os.environ["C2D_PAGE_PICTURES"], name))


def fits(browser):
    wide = browser.run("return [document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]")
    assert wide[0] <= wide[1], f"the page is {wide[0]} wide in a window of {wide[1]}"


with Browser(chromedriver, chromium, 1200, 900) as browser:
    # Who does not have the token sees nothing of the hub, and what to do.
    browser.open(origin + "/")
    browser.wait_text("Open the address in the file page.address of the emulator")
    assert "dev1" not in browser.text()

    browser.open(address)
    browser.wait_text("live")
    browser.wait_text("dev1")
    assert browser.run("return location.hash") == "", "the token stays in the address bar"
    browser.wait_text("The queue is empty.")
    browser.wait_text("not connected")

    # By keyboard alone, from the device's list through the form; a message that would be markup is text.
    browser.run("document.getElementById('device').focus()")
    browser.type(TAB + TAB + "m-1" + TAB + TAB + "action" + TAB + "write" + TAB + TAB + TAB + "<b>bold</b>" + TAB + ENTER)
    browser.wait_text("queued as m-1")
    browser.wait_text("<b>bold</b>")
    assert browser.run("return document.querySelectorAll('#devices b').length") == 0
    assert "enqueued" in browser.text()
    fits(browser)
    picture(browser, "enqueued.png")

    # What the form cannot send is said beside the button.
    browser.click("#add")
    browser.type("$.to" + TAB + "x")
    browser.click("#send .primary")
    browser.wait("an error", lambda: "bad" in browser.run("return document.getElementById('sent').className"))
    assert "$.to" in browser.run("return document.getElementById('sent').textContent"), browser.text()
    browser.click(".property:last-child button")

    # A property is neither dropped nor merged with another one: the field at fault is said, and has the focus.
    for keys, wrong in [
        (TAB + "on", 'The property with the value "on" has no name'),
        ("action" + TAB + "off", 'Two properties are named "action"'),
    ]:
        browser.click("#add")
        browser.type(keys)
        browser.click("#send .primary")
        browser.wait("what is wrong", lambda: wrong in browser.run("return document.getElementById('sent').textContent"))
        assert browser.run("return document.activeElement.closest('.property:last-child') !== null")
        picture(browser, "two.png")
        browser.click(".property:last-child button")
        assert browser.run("return document.getElementById('sent').textContent") == "", "the fault is gone"
    assert browser.run("return document.querySelectorAll('#devices tbody tr').length") == 1, "it was sent all the same"

    # It moves by itself: with the device, and then ended, with feedback, a D2C message, and a twin.
    ask("start the device")
    browser.wait_text("invisible, locked for")
    browser.wait("a connected device", lambda: browser.run(
        "return [...document.querySelectorAll('.badge')].some((b) => b.textContent === 'connected')"))
    picture(browser, "invisible.png")
    # What is open stays open when the page renews itself.
    for summary in ("article > details:nth-of-type(1) > summary", "article > details:nth-of-type(2) > summary"):
        browser.click(summary)
    ask("let the action end")
    browser.wait_text("completed")
    browser.wait_text("The queue is empty.")
    browser.wait("feedback", lambda: "completed" in browser.run("return document.getElementById('feedback').innerText"))
    browser.wait_text('"outcome":"succeeded"')
    browser.wait_text('"reported"')
    badges = """return [...document.querySelectorAll('article tbody tr')].filter((row) => row.innerText.includes(arguments[0]))
        .map((row) => [...row.querySelectorAll('.badge')].map((b) => b.textContent + ' ' + b.className.split(' ')[1]).join(', '))
        .filter((badges) => badges !== '')"""
    browser.wait("the device's own outcome", lambda: browser.run(badges, "m-1") == ["succeeded good, completed hub"])
    assert "<b>bold</b>" in browser.text(), "the content of a message that has ended"

    # A failed action is not green, although the hub has its message as completed. Its message is sent again by a button.
    browser.run("document.getElementById('message-id').value = 'm-2'")
    browser.run("document.querySelector('.property input:nth-of-type(2)').value = 'fail'")
    browser.click("#send .primary")
    browser.wait("the failure", lambda: browser.run(badges, "m-2") == ["failed bad, completed hub"])
    browser.wait_text("exit code 3")
    picture(browser, "failed.png")
    browser.click('button[aria-label="Send m-2 again"]')
    browser.wait_text("queued again as ")
    again = browser.text().split("queued again as ")[1].split()[0]
    browser.wait("the second failure", lambda: browser.run(badges, again) == ["failed bad, completed hub"])
    kept = "return document.activeElement.getAttribute('aria-label')"
    assert browser.run(kept) == "Send m-2 again", "the focus is lost when the page renews itself"

    # What goes wrong on purpose is said, and what is left of it.
    ask("have two PUBACKs ignored and throttle the device")
    browser.wait_text("fault: ignore-puback=2")
    browser.wait_text("fault: throttle")

    # On a phone.
    browser.resize(360, 740)
    fits(browser)
    picture(browser, "phone.png")
    small = browser.run("""return [...document.querySelectorAll('button, select, input')]
        .filter((e) => e.getBoundingClientRect().height < 36).length""")
    assert small == 0, "a control is too small for a finger"

    ask("stop the emulator")
    browser.wait_text("the emulator does not answer")
    # The last request was cut with the emulator; nothing else may have gone wrong.
    wrong = [line for line in browser.complaints() if "ERR_" not in line and "401" not in line and "400" not in line]
    assert wrong == [], wrong
print("seen", flush=True)
